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
from functools import lru_cache
from itertools import combinations

from tnadapt._errors import PlanError, SiteError, SpecError
from tnadapt._hosts import Site
from tnadapt._language import Adapter, AdapterSpec, Group, Network, expect_adapter
from tnadapt._signature import answers, mistake, told
from tnadapt._structure.jacobian import Jacobian, Modes, Place, joined_rank
from tnadapt._structure.modular import Budget
from tnadapt._structure.rank import networks_at, open_modes

__all__ = ["Freedom", "degrees_of_freedom", "first_gradients"]

Directions = frozenset[Modes]

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

    The values are generic, also those of frozen factors and of starting values that the update uses: if yours are
    special, such as a constant, the rank may be lower there. The rank is never too high. For each Jacobian it is too
    low with a probability below trainable numbers x (factors + 1) / 2^31. Large modes are cut to a size above which the
    rank is proven to be a polynomial, and the polynomial is evaluated at their full size (the module's docstring has
    the proof).

    Args:
        adapter: the adapter whose updates are examined.
        where: a site, with the parts of shared factors that it reads; or a group with all its sites. By default the
            whole adapter.
        limit: the most trainable numbers that one Jacobian may have after the cut.
        seed: the seed of the generic values.

    Raises:
        PlanError: a network that stays above the limit or takes too much work; a trainable factor with a map; or a
            magnitude. If several groups share a trained factor, the Jacobian of the whole adapter is that of its full
            size.
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
        return _joined(adapter, limit, seed)
    parts = []
    for group, site in networks_at(adapter, where):
        parts.append(_degrees(group.network, site is None, None if site is not None else group.places, limit, seed))
    return Freedom(sum(part.trainable for part in parts), sum(part.degrees for part in parts))


def _joined(adapter: Adapter, limit: int, seed: int) -> Freedom:
    """Return the degrees of freedom of an adapter whose groups share a trained factor."""
    trainable = sum(math.prod(slot.shape) for slot in adapter.slots.values() if slot.factor.trainable)
    if trainable > limit:
        raise PlanError(
            f"degrees_of_freedom: expected at most {limit:,} trainable numbers where groups share a trained factor, "
            f"since such a Jacobian is not cut, got {trainable:,} with {adapter.joined[0]!r} in {len(adapter.groups)} "
            f"groups.\nAsk about a group or a site, such as {adapter.groups[0].name!r}, or pass a larger limit."
        )
    return Freedom(trainable, joined_rank(adapter, seed, Budget("degrees_of_freedom", flops=WORK)))


@lru_cache(maxsize=1024)
def _degrees(network: Network, is_stack: bool, places: tuple[Place, ...] | None, limit: int, seed: int) -> Freedom:
    jacobian = Jacobian(network, is_stack, places, seed, Budget("degrees_of_freedom", flops=WORK))
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

    def __init__(self, jacobian: Jacobian, full: Mapping[str, int], cut: Mapping[str, int]) -> None:
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
