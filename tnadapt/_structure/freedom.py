"""Degrees of freedom: the rank of the Jacobian of an adapter's updates, and which factors move first in training.

The Jacobian of a large adapter is too large to compute, so large modes are cut to small sizes, from which on the rank
is a polynomial in these sizes. The proof: let f(d) be the rank at sizes d of some open modes, and f_S the rank for the
entries that carry all modes of a set S, at one index of each of them, with all other entries fixed.

* One mode i. The entries that carry i at one index act on that index alone. Eliminating them gives f(d) = d f_i +
  rest(d), where rest(d) is the rank of what d generic indices determine about the other entries beyond that. rest never
  falls, and once one more generic index adds nothing, no later one does. So if f grows by exactly f_i from d to d + 1,
  it does so for all larger d.
* Several modes. If f_S(c + e_i) = f_S(c) + f_Si(c) for every S, every i outside S and every corner c of a unit cube at
  some base, then f is the polynomial sum over S of f_S(base) prod over i in S of (d_i - base_i). By the first step each
  f_S is linear in the first mode at every corner of the others. So the condition holds for the other modes at any size
  of the first, and the argument repeats.
* One corner is enough. f_S(c + e_i) is never below f_S(c) + f_Si(c), so f at the top corner is never below the sum over
  S of f_S(base). If they are equal, no step on any path to the top corner is larger, and all conditions hold.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations

import numpy as np

from tnadapt._errors import PlanError, SiteError, SpecError
from tnadapt._hosts import Site
from tnadapt._language import Adapter, AdapterSpec, Group, Network, Term, expect_adapter
from tnadapt._signature import answers, mistake, told
from tnadapt._structure.modular import PRIME, Budget, contract, question_of, rank, residues
from tnadapt._structure.rank import networks_at, open_modes

__all__ = ["Freedom", "degrees_of_freedom", "first_gradients"]

Modes = tuple[str, ...]
Place = tuple[int, ...]
Directions = frozenset[Modes]

FUNCTIONAL = "(functional)"  # brackets: no mode can have this name
LIMIT = 2_048  # trainable numbers of one Jacobian
WORK = 2**35  # flops of all Jacobians of a network together: about ten seconds
MOST_DIRECTIONS = 8  # of cut modes; the number of corners and conditions grows exponentially with them
SMALLEST, GROWTH = 2, 1.5  # the size that modes are first cut to, and the factor by which it grows if it is too small


@dataclass(frozen=True)
class Freedom:
    """The trainable numbers of an adapter, and the rank of its update's derivative at generic values."""

    trainable: int
    degrees: int

    @property
    def gauge(self) -> int:
        """The number of redundant trainable numbers: directions that change no update."""
        return self.trainable - self.degrees

    def __str__(self) -> str:
        """Return text such as "39 of 48 (gauge 9)"."""
        return f"{self.degrees:,} of {self.trainable:,} (gauge {self.gauge:,})"


@answers(SpecError)
def first_gradients(spec: AdapterSpec | Adapter) -> tuple[str, ...]:
    """Return the factors that get a gradient in the first step: those without which some term is not zero.

    This holds for generic starting values of the other factors and a generic loss. For an adapter, return the factors
    of its spec. Raises SpecError for anything else.
    """
    spec = spec.spec if isinstance(spec, Adapter) else spec
    if not isinstance(spec, AdapterSpec):
        todo = "Call the family, or pass an adapter."
        raise mistake(SpecError, "first_gradients", "an AdapterSpec or an Adapter", told(spec), todo)
    return spec.moving


@answers(SiteError)
def degrees_of_freedom(
    adapter: Adapter, where: Site | Group | str | None = None, *, limit: int = LIMIT, seed: int = 0
) -> Freedom:
    """Return the rank of the derivative of the update by its trainable numbers, modulo the prime 2^31 - 19.

    The values are generic, also those of frozen factors. The rank is never too high. For each Jacobian it is too low
    with a probability below trainable numbers x (factors + 1) / 2^31. Large modes are cut to a size above which the
    rank is proven to be a polynomial, and the polynomial is evaluated at their full size (the module's docstring has
    the proof).

    Args:
        adapter: the adapter whose updates are examined.
        where: a site, with the parts of shared factors that it reads; or a group with all its sites. By default the
            whole adapter.
        limit: the most trainable numbers that one Jacobian may have after the cut.
        seed: the seed of the generic values.

    Raises:
        PlanError: a network that stays above the limit or takes too much work; a trainable factor with a map; a
            magnitude; or, for the whole adapter, one that several groups share.
        SiteError: a site or a group that does not belong to this adapter.
    """
    expect_adapter(adapter, "degrees_of_freedom")
    if mapped := [name for name, factor in adapter.spec.arrays.items() if factor.map and factor.trainable]:
        raise PlanError(
            "degrees_of_freedom: expected an update that is a polynomial in its trainable numbers, got one whose "
            f"factor {mapped[0]} has a map."
        )
    if adapter.spec.magnitude:
        raise PlanError(
            "degrees_of_freedom: expected an update that is a polynomial in its trainable numbers, got one with the "
            f"magnitude {adapter.spec.magnitude}.\nAsk for the spec without it; each row of a weight adds at most one."
        )
    if where is None and adapter.joined:
        raise PlanError(
            f"degrees_of_freedom: expected groups that share no trained factor, got {adapter.joined[0]!r}, which "
            f"{len(adapter.groups)} groups share.\nPass a group or a site, such as {adapter.groups[0].name!r}."
        )
    parts = []
    for group, site in networks_at(adapter, where):
        parts.append(_degrees(group.network, site is None, None if site is not None else group.places, limit, seed))
    return Freedom(sum(part.trainable for part in parts), sum(part.degrees for part in parts))


@dataclass(frozen=True)
class _Jacobian:
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
        nodes = self.network.nodes
        drawn = {(node.factor, node.at_start): self._modes_of(name) for name, node in nodes.items()}
        self.budget.spend(0, sum(math.prod(sizes[mode] for mode in modes) for modes in drawn.values()))
        values = {key: residues([sizes[mode] for mode in modes], random) for key, modes in drawn.items()}
        outer = open_modes(self.network, is_stack=self.is_stack)
        shape = [sizes[mode] for mode in outer]
        count = min(sum(values[name, False].size for name in by), math.prod(shape))
        if count == 0:
            return 0
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
        return rank(np.concatenate(blocks, axis=1), self.budget)

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


@lru_cache(maxsize=1024)
def _degrees(network: Network, is_stack: bool, places: tuple[Place, ...] | None, limit: int, seed: int) -> Freedom:
    jacobian = _Jacobian(network, is_stack, places, seed, Budget("degrees_of_freedom", flops=WORK))
    full = dict(network.sizes)
    trainable = jacobian.entries(full)
    if network.scale == 0:
        return Freedom(trainable, 0)
    held = jacobian.renamed | {*network.over} if places is not None else jacobian.renamed
    base = {mode: float(SMALLEST) for mode in open_modes(network, is_stack=is_stack) if mode not in held}
    while True:
        cut = {mode: math.ceil(size) for mode, size in base.items() if full[mode] > math.ceil(size) + 1}
        if (entries := jacobian.entries({**full, **{mode: size + 1 for mode, size in cut.items()}})) > limit:
            raise PlanError(
                f"degrees_of_freedom: expected a Jacobian of at most {limit:,} trainable numbers, got {entries:,}.\n"
                "Pass a larger limit, or ask about fewer sites."
            )
        polynomial = _Polynomial(jacobian, full, cut)
        if len(polynomial.directions) > MOST_DIRECTIONS:
            raise PlanError(
                f"degrees_of_freedom: expected at most {MOST_DIRECTIONS} large modes to cut to smaller sizes, got "
                f"{len(polynomial.directions)}."
            )
        if polynomial.fits():
            return Freedom(trainable, polynomial.at_full_size())
        unfit = polynomial.first_unfit()
        if set(unfit) - set(network.over):  # modes of the weight grow together, which keeps the Jacobian small
            coupled = jacobian.coupled(unfit)
            unfit = tuple(mode for mode in cut if mode in unfit or (mode in coupled and mode not in network.over))
        smallest = min(base[mode] for mode in unfit)
        base |= {mode: base[mode] * GROWTH for mode in unfit if base[mode] == smallest}


class _Polynomial:
    """The rank as a polynomial in the sizes of the cut modes, if it is one for all sizes above these.

    A direction is one cut mode, or all cut modes together that no trainable factor carries. The rank never falls as any
    of those grows, so if it stays the same when all grow at once, it stays the same when each grows.
    """

    def __init__(self, jacobian: _Jacobian, full: Mapping[str, int], cut: Mapping[str, int]) -> None:
        self.jacobian = jacobian
        self.full = full
        self.cut = cut
        untrained = tuple(mode for mode in cut if not jacobian.carriers([mode]))
        self.directions = [(mode,) for mode in cut if mode not in untrained] + ([untrained] if untrained else [])
        self.known: dict[tuple[Directions, Directions], int] = {}

    def fits(self) -> bool:
        """Return whether the rank is a polynomial from the cut sizes on, which the top corner shows."""
        base = sum(self.rank(fixed, frozenset()) for fixed in self.sets())
        return self.rank(frozenset(), frozenset(self.directions)) == base

    def first_unfit(self) -> Modes:
        """Return the modes to cut less if the rank is not a polynomial: those of the first condition that fails.

        Conditions on few entries are tried first, and among these the ones at small corners.
        """
        for fixed in reversed(self.sets()):
            for grown in self.sets():
                for step in self.directions if not fixed & grown and self.carriers(fixed) else ():
                    if step in fixed | grown:
                        continue
                    change = self.rank(fixed, grown | {step}) - self.rank(fixed, grown)
                    if change != self.rank(fixed | {step}, grown):
                        return tuple(mode for direction in grown | {step} for mode in direction)
        return tuple(self.cut)

    def at_full_size(self) -> int:
        """Return the value of the polynomial at the full sizes."""
        return sum(
            self.rank(fixed, frozenset())
            * math.prod(self.full[mode] - self.cut[mode] for direction in fixed for mode in direction)
            for fixed in self.sets()
        )

    def sets(self) -> list[Directions]:
        """Return all sets of directions, small ones first."""
        sizes = range(len(self.directions) + 1)
        return [frozenset(chosen) for size in sizes for chosen in combinations(self.directions, size)]

    def carriers(self, fixed: Collection[Modes]) -> list[str]:
        """Return the trainable factors that carry all modes of these directions."""
        return self.jacobian.carriers([mode for direction in fixed for mode in direction])

    def rank(self, fixed: Directions, grown: Directions) -> int:
        """Return f_S at a corner: S is `fixed`, and the directions in `grown` have one index more."""
        key = (fixed, grown)
        if key not in self.known:
            by = self.carriers(fixed)
            sizes = dict(self.full)
            for direction in self.directions:
                for mode in direction:
                    sizes[mode] = 1 if direction in fixed else self.cut[mode] + (direction in grown)
            self.known[key] = self.jacobian.rank(sizes, by) if by else 0
        return self.known[key]
