"""How many of the trainable numbers are free: the rank of the Jacobian at generic values, and who moves first.

How large modes are cut down. Let f(d) be the rank at sizes d of some open modes, and f_S that of the entries which
carry all modes of a set S, at one index of each of them, all other entries held.

* One mode i: the entries that carry i at one index act on that index alone. Eliminating them, f(d) = d f_i + rest(d),
  where rest(d) is the rank of what d generic indices say of the other entries beyond that. rest never falls, and once
  one more generic index adds nothing, none ever does: if f grows by just f_i from d to d + 1, it does so for ever.
* Several: if f_S(c + e_i) = f_S(c) + f_Si(c) for every S, every i outside of S and every corner c of a unit cube at
  some base, then f is the polynomial sum over S of f_S(base) prod over i in S of (d_i - base_i). For by the above each
  f_S is linear in the first mode at every corner of the others; so the condition holds for the others at any size of
  the first, and so on.
* One corner is enough: f_S(c + e_i) is never below f_S(c) + f_Si(c), so that f at the top corner is never below the
  sum over S of f_S(base); where it is equal, no step on any way there can be larger, and all the conditions hold.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from tnadapt._errors import PlanError, SiteError, SpecError
from tnadapt._hosts import Site
from tnadapt._language import Adapter, AdapterSpec, Group, Network, expect_adapter
from tnadapt._signature import answers, mistake, told
from tnadapt._structure.modular import Budget, contract, question_of, rank, residues
from tnadapt._structure.rank import networks_at, open_modes

__all__ = ["Freedom", "degrees_of_freedom", "first_gradients"]

Modes = tuple[str, ...]
Place = tuple[int, ...]
Directions = frozenset[Modes]

FUNCTIONAL = "(functional)"  # brackets: no mode can have this name
LIMIT = 2_048  # trainable numbers of one Jacobian
WORK = 2**35  # flops of all Jacobians of a network together: some ten seconds
MOST_DIRECTIONS = 8  # of cut modes; the corners and conditions grow exponentially with them
SMALLEST, GROWTH = 2, 1.5  # sizes that modes are cut to: the first, and by how much they grow where it will not do


@dataclass(frozen=True)
class Freedom:
    """Trainable numbers, and how many directions of the update they move at generic values."""

    trainable: int
    degrees: int

    @property
    def gauge(self) -> int:
        """Trainable numbers that are redundant: directions that leave every update as it is."""
        return self.trainable - self.degrees

    def __str__(self) -> str:
        """As in 39 of 48 (gauge 9)."""
        return f"{self.degrees:,} of {self.trainable:,} (gauge {self.gauge:,})"


@answers(SpecError)
def first_gradients(spec: AdapterSpec | Adapter) -> tuple[str, ...]:
    """The factors that get a gradient in the first step: those beside which no other factor starts at zero.

    Generically in the other starting values and in the loss. Of an adapter, those of its spec. Raises SpecError for
    anything else.
    """
    spec = spec.spec if isinstance(spec, Adapter) else spec
    if not isinstance(spec, AdapterSpec):
        todo = "Call the family, or pass an adapter."
        raise mistake(SpecError, "first_gradients", "an AdapterSpec or an Adapter", told(spec), todo)
    zeros = [name for name, factor in spec.factors.items() if factor.is_zero]
    return tuple(name for name, factor in spec.factors.items() if factor.trainable and set(zeros) <= {name})


@answers(SiteError)
def degrees_of_freedom(
    adapter: Adapter, where: Site | Group | str | None = None, *, limit: int = LIMIT, seed: int = 0
) -> Freedom:
    """The rank of the derivative of the update by its trainable numbers, modulo the prime 2^31 - 19.

    At generic values, frozen factors among them. Never too high; too low, for each of the Jacobians that are made, with
    a probability below trainable numbers x (factors + 1) / 2^31. Modes that are large are cut to a size from which on
    the rank is proven to be a polynomial, which is taken at their own size (the proof is in the module's docstring).

    Args:
        adapter: whose updates are asked about.
        where: a site, with what it reads of shared factors; a group with all its sites; without either the adapter.
        limit: how many trainable numbers one Jacobian may have, after the cut.
        seed: of the generic values.

    Raises:
        PlanError: a network that stays above the limit, or takes too much work.
        SiteError: a site or a group that is not this adapter's.
    """
    expect_adapter(adapter, "degrees_of_freedom")
    if mapped := [name for name, factor in adapter.spec.factors.items() if factor.map and factor.trainable]:
        raise PlanError(f"degrees_of_freedom: an update is no polynomial in what {mapped[0]} holds: it has a map.")
    parts = []
    for group, site in networks_at(adapter, where):
        parts.append(_degrees(group.network, site is None, None if site is not None else group.places, limit, seed))
    return Freedom(sum(part.trainable for part in parts), sum(part.degrees for part in parts))


@dataclass(frozen=True)
class _Jacobian:
    """The derivative of a network by some of its factors; sizes may be other than the network's."""

    network: Network
    is_stack: bool
    places: tuple[Place, ...] | None
    seed: int
    budget: Budget

    def modes(self, factor: str) -> Modes:
        return self.network.factors[factor].modes if self.is_stack else self.network.local_modes(factor)

    @property
    def trained(self) -> list[str]:
        return [name for name, factor in self.network.factors.items() if factor.trainable]

    def entries(self, sizes: Mapping[str, int]) -> int:
        return sum(math.prod(sizes[mode] for mode in self.modes(name)) for name in self.trained)

    def carriers(self, modes: Collection[str]) -> list[str]:
        """The trainable factors that carry all these modes."""
        return [name for name in self.trained if set(modes) <= set(self.modes(name))]

    def coupled(self, modes: Collection[str]) -> set[str]:
        """These modes, and all that trainable factors join to them, directly or by others."""
        found = set(modes)
        while (
            more := {mode for name in self.trained if found & set(self.modes(name)) for mode in self.modes(name)}
            - found
        ):
            found |= more
        return found

    def rank(self, sizes: Mapping[str, int], by: list[str]) -> int:
        """The rank of the derivative by these factors. Raises PlanError where it is too much work."""
        random = np.random.default_rng(self.seed)
        self.budget.spend(0, sum(math.prod(sizes[m] for m in self.modes(name)) for name in self.network.factors))
        values = {name: residues([sizes[mode] for mode in self.modes(name)], random) for name in self.network.factors}
        outer = open_modes(self.network, is_stack=self.is_stack)
        shape = [sizes[mode] for mode in outer]
        count = min(sum(values[name].size for name in by), math.prod(shape))
        if count == 0:
            return 0
        self.budget.spend(0, count * math.prod(shape))
        pull = residues([count, *shape], random)
        if self.places is not None:
            pull *= self._mask(shape)
        blocks = []
        for name in by:
            others = [other for other in values if other != name]
            inputs = [(FUNCTIONAL, *outer), *(self.modes(other) for other in others)]
            question = question_of(inputs, (FUNCTIONAL, *self.modes(name)), {FUNCTIONAL: count, **sizes})
            block = contract(question, [pull, *(values[other] for other in others)], self.budget)
            blocks.append(block.reshape(count, -1))
        return rank(np.concatenate(blocks, axis=1), self.budget)

    def _mask(self, shape: list[int]) -> np.ndarray:
        """1 where a site stands, 0 elsewhere; shaped to broadcast."""
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
    held = network.over if places is not None else ()
    base = {mode: float(SMALLEST) for mode in open_modes(network, is_stack=is_stack) if mode not in held}
    while True:
        cut = {mode: math.ceil(size) for mode, size in base.items() if full[mode] > math.ceil(size) + 1}
        if (entries := jacobian.entries({**full, **{mode: size + 1 for mode, size in cut.items()}})) > limit:
            raise PlanError(
                f"degrees_of_freedom: a Jacobian of {entries:,} trainable numbers; the limit is {limit:,}.\n"
                "Pass a larger limit, or ask about fewer sites."
            )
        polynomial = _Polynomial(jacobian, full, cut)
        if len(polynomial.directions) > MOST_DIRECTIONS:
            raise PlanError(
                f"degrees_of_freedom: {len(polynomial.directions)} modes would have to be cut down.\n"
                f"The limit is {MOST_DIRECTIONS}."
            )
        if polynomial.fits():
            return Freedom(trainable, polynomial.at_full_size())
        unfit = polynomial.first_unfit()
        if set(unfit) - set(network.over):  # modes of the weight grow side by side: that keeps the Jacobian small
            coupled = jacobian.coupled(unfit)
            unfit = tuple(mode for mode in cut if mode in unfit or (mode in coupled and mode not in network.over))
        smallest = min(base[mode] for mode in unfit)
        base |= {mode: base[mode] * GROWTH for mode in unfit if base[mode] == smallest}


class _Polynomial:
    """The rank as a polynomial in the sizes of modes that were cut, if it is one from there on.

    A direction is one such mode; or, together, all those that no trainable factor carries: the rank never falls in any
    of them, so that it stays as it is in each where it does in all at once.
    """

    def __init__(self, jacobian: _Jacobian, full: Mapping[str, int], cut: Mapping[str, int]) -> None:
        self.jacobian = jacobian
        self.full = full
        self.cut = cut
        untrained = tuple(mode for mode in cut if not jacobian.carriers([mode]))
        self.directions = [(mode,) for mode in cut if mode not in untrained] + ([untrained] if untrained else [])
        self.known: dict[tuple[Directions, Directions], int] = {}

    def fits(self) -> bool:
        """Whether the rank is a polynomial from the cut sizes on: seen at the top corner."""
        base = sum(self.rank(fixed, frozenset()) for fixed in self.sets())
        return self.rank(frozenset(), frozenset(self.directions)) == base

    def first_unfit(self) -> Modes:
        """Modes to cut less, where it does not fit: those of the first condition that does not hold.

        The conditions on few entries come first, then those of small corners.
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
        """The polynomial at full size."""
        return sum(
            self.rank(fixed, frozenset())
            * math.prod(self.full[mode] - self.cut[mode] for direction in fixed for mode in direction)
            for fixed in self.sets()
        )

    def sets(self) -> list[Directions]:
        """All sets of directions, small ones first."""
        sizes = range(len(self.directions) + 1)
        return [frozenset(chosen) for size in sizes for chosen in combinations(self.directions, size)]

    def carriers(self, fixed: Collection[Modes]) -> list[str]:
        """The trainable factors that carry all modes of these directions."""
        return self.jacobian.carriers([mode for direction in fixed for mode in direction])

    def rank(self, fixed: Directions, grown: Directions) -> int:
        """f_S at a corner: S is `fixed`, and `grown` have one index more."""
        key = (fixed, grown)
        if key not in self.known:
            by = self.carriers(fixed)
            sizes = dict(self.full)
            for direction in self.directions:
                for mode in direction:
                    sizes[mode] = 1 if direction in fixed else self.cut[mode] + (direction in grown)
            self.known[key] = self.jacobian.rank(sizes, by) if by else 0
        return self.known[key]
