"""The derivative of updates by trained numbers, modulo a prime: of one network, or of groups that share factors."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tnadapt._language import START, Adapter, Group, Network, Term
from tnadapt._structure.modular import PRIME, Budget, Residues, contract, question_of, rank, residues
from tnadapt._structure.rank import open_modes

__all__: list[str] = []

Modes = tuple[str, ...]
Place = tuple[int, ...]
Random = np.random.Generator
Values = Mapping[tuple[str, bool], Residues]  # by (factor, whether at its start)

FUNCTIONAL = "(functional)"  # brackets: no mode can have this name


@dataclass(frozen=True)
class Jacobian:
    """The derivative of a network with respect to some of its factors, at any sizes of its modes."""

    network: Network
    is_stack: bool
    places: tuple[Place, ...] | None
    seed: int
    budget: Budget

    def modes(self, factor: str) -> Modes:
        modes = self.network.factors[factor].modes
        return modes if self.is_stack else tuple(mode for mode in modes if mode not in self.network.over)

    def _modes_of(self, node: str) -> Modes:
        return self.network.stack_modes(node) if self.is_stack else self.network.local_modes(node)

    @property
    def trained(self) -> list[str]:
        return [name for name, factor in self.network.factors.items() if factor.trainable]

    @cached_property
    def renamed(self) -> set[str]:
        """The modes of axes that have several names, so that a size is the size of each of them."""
        nodes = self.network.nodes.values()
        pairs = [(node.modes, self.network.factors[node.factor].modes) for node in nodes]
        return {mode for one, other in pairs if one != other for mode in (*one, *other)}

    def entries(self, sizes: Mapping[str, int]) -> int:
        return sum(math.prod(sizes[mode] for mode in self.modes(name)) for name in self.trained)

    def carriers(self, modes: Collection[str]) -> list[str]:
        """Return the trainable factors that carry all these modes."""
        return [name for name in self.trained if set(modes) <= set(self.modes(name))]

    def coupled(self, modes: Collection[str]) -> set[str]:
        """Return these modes and all modes that trainable factors join to them, directly or through other modes."""
        found = set(modes)
        while (
            more := {mode for name in self.trained if found & set(self.modes(name)) for mode in self.modes(name)}
            - found
        ):
            found |= more
        return found

    def rank(self, sizes: Mapping[str, int], by: list[str]) -> int:
        """Return the rank of the derivative with respect to these factors. Raises PlanError if it is too much work."""
        random = np.random.default_rng(self.seed)
        drawn = {(node.factor, node.at_start): self._modes_of(name) for name, node in self.network.nodes.items()}
        self.budget.spend(0, sum(math.prod(sizes[mode] for mode in modes) for modes in drawn.values()))
        values = {key: residues([sizes[mode] for mode in modes], random) for key, modes in drawn.items()}
        blocks = self.blocks(sizes, by, values, random)
        return rank(np.concatenate(blocks, axis=1), self.budget) if blocks else 0

    def blocks(self, sizes: Mapping[str, int], by: list[str], values: Values, random: Random) -> list[Residues]:
        """Return the derivative of random functionals of the update, enough to keep its rank: a block for each factor.

        A derivative by nothing has no blocks.
        """
        nodes = self.network.nodes
        outer = open_modes(self.network, is_stack=self.is_stack)
        shape = [sizes[mode] for mode in outer]
        count = min(sum(values[name, False].size for name in by), math.prod(shape))
        if count == 0:
            return []
        self.budget.spend(0, count * math.prod(shape))
        pull = residues([count, *shape], random)
        if self.places is not None:
            pull *= self._mask(shape)
        blocks = []
        for name in by:
            block = np.zeros((count, values[name, False].size), dtype=np.int64)
            for term, place in self._uses(name):
                others = [other for other in term.nodes if other != place]
                inputs = [(FUNCTIONAL, *outer), *map(self._modes_of, others)]
                question = question_of(inputs, (FUNCTIONAL, *self._modes_of(place)), {FUNCTIONAL: count, **sizes})
                operands = [pull, *(values[nodes[other].factor, nodes[other].at_start] for other in others)]
                block += term.sign * contract(question, operands, self.budget).reshape(count, -1)
            blocks.append(block % PRIME)
        return blocks

    def _uses(self, factor: str) -> list[tuple[Term, str]]:
        """Return the terms that a factor is trained in, with the name of its node there."""
        nodes = self.network.nodes
        return [
            (term, name)
            for term in self.network.terms
            for name in term.nodes
            if nodes[name].factor == factor and not nodes[name].at_start
        ]

    def _mask(self, shape: list[int]) -> np.ndarray:
        """Return 1 where there is a site and 0 elsewhere, in a shape that broadcasts."""
        along = len(self.network.over)
        mask = np.zeros(shape[:along], dtype=np.int64)
        for place in self.places or ():
            mask[place] = 1
        return mask.reshape(1, *mask.shape, *[1] * (len(shape) - along))


def joined_rank(adapter: Adapter, seed: int, budget: Budget) -> int:
    """Return the rank of one Jacobian of all groups, at full size, whose columns are the trained entries of params.

    Each group has functionals of its own, and columns of 0 where it does not read an entry.
    """
    slots, random = adapter.slots, np.random.default_rng(seed)
    trained = {name: slot.shape for name, slot in slots.items() if slot.factor.trainable}
    drawn: dict[str, Residues] = {}
    rows: list[Residues] = []
    for group in adapter.groups:
        network = group.network
        jacobian = Jacobian(network, True, group.places, seed, budget)
        values = _values_of(adapter, group, drawn, random)
        blocks = jacobian.blocks(network.sizes, jacobian.trained, values, random) if network.scale else []
        if not blocks:
            continue
        count = len(blocks[0])
        budget.spend(0, (sum(map(len, rows)) + count) * sum(map(math.prod, trained.values())))
        wide = {name: np.zeros((count, *shape), dtype=np.int64) for name, shape in trained.items()}
        for factor, block in zip(jacobian.trained, blocks, strict=True):
            shape = network.shape(factor)
            wide[adapter.slot_name(group, factor)][:, *map(slice, shape)] = block.reshape(count, *shape)
        rows.append(np.concatenate([part.reshape(count, -1) for part in wide.values()], axis=1))
    return rank(np.concatenate(rows), budget) if rows else 0


def _values_of(adapter: Adapter, group: Group, drawn: dict[str, Residues], random: Random) -> Values:
    """Return a group's values: the leading parts of entries that all groups share. `drawn` keeps those made so far."""
    network, values = group.network, {}
    for name, node in network.nodes.items():
        key = (node.factor, node.at_start)
        if network.factors[node.factor].init.is_host:
            values[key] = residues([network.sizes[mode] for mode in network.stack_modes(name)], random)
            continue
        entry = adapter.slot_name(group, node.factor)
        name_drawn = f"{entry}{START * node.at_start}"
        if name_drawn not in drawn:
            drawn[name_drawn] = residues(adapter.slots[entry].shape, random)
        values[key] = drawn[name_drawn][tuple(map(slice, network.shape(node.factor)))]
    return values
