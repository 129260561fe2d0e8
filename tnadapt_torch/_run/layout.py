"""Choose the axis order of each intermediate of a plan, so that little is copied and no matrix product is slow.

A matrix product reads an operand without a copy if the summed axes are adjacent at one end, in the same order as in the
other operand. The axes of either operand can come first in the result. Trying both at every step covers a whole plan.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tnadapt.binding import Convolution, Plan, run

__all__: list[str] = []

Modes = tuple[str, ...]

OVERHEAD = 2048  # cost of one more operation, in elements copied (about 2 us at 1 ns per element on one core)
SLOW = 8  # a gradient with its short side innermost takes as long as copying 1 / 8 of its multiplications
SKINNY = 4  # a matrix is skinny from this ratio of its sides
KEEP = 32  # number of ways kept for each intermediate


@dataclass(frozen=True)
class Roles:
    """The modes of a step by their role in the product; `batch` and `summed` are in both operands."""

    batch: Modes
    left: Modes
    right: Modes
    summed: Modes


@dataclass(frozen=True)
class Given:
    """An operand of the plan, in its given axis order."""

    number: int
    order: Modes
    cost: float = 0.0


@dataclass(frozen=True)
class Way:
    """One way to compute an intermediate.

    `cost` is in elements copied and includes the cost of both operands. `left_order` and `right_order` are the axis
    orders in which the operands are read, after a copy if they are stored in another order. If `swapped`, the axes of
    the right operand come first in the result.
    """

    order: Modes
    cost: float
    roles: Roles
    left: "Laid"
    right: "Laid"
    left_order: Modes
    right_order: Modes
    swapped: bool = False


@dataclass(frozen=True)
class Convolved:
    """The one way to compute a convolution: the transformed axis leads, so that products of the spectra copy nothing.

    The roles are without that axis.
    """

    order: Modes
    cost: float
    roles: Roles
    left: "Laid"
    right: "Laid"
    how: Convolution


Laid = Given | Way | Convolved


@dataclass
class _Ways:
    """The ways kept for an operand or an intermediate, and whether it needs a gradient."""

    ways: Sequence[Laid]
    needs_grad: bool


class _Backend:
    """A backend that runs a plan on ways to lay arrays out instead of on arrays."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.kept: dict[int, _Ways] = {}  # by the identity of a way, which they hold
        self.terms: list[tuple[int, Laid]] = []

    def contract(self, left: _Ways, right: _Ways, kept: Modes, wanted: Modes) -> _Ways:
        """Find the cheapest way for each order of the result's axes."""
        found: dict[Modes, Way] = {}
        for one in left.ways:
            for other in right.ways:
                for way in _ways(self.plan, one, other, kept, right_grad=right.needs_grad):
                    if way.order not in found or way.cost < found[way.order].cost:
                        found[way.order] = way
        made = _Ways(sorted(found.values(), key=lambda way: way.cost)[:KEEP], left.needs_grad or right.needs_grad)
        self.kept |= dict.fromkeys(map(id, made.ways), made)
        return made

    def convolve(self, left: _Ways, right: _Ways, kept: Modes, how: Convolution) -> _Ways:
        """Take the cheapest way of each side: a transform reads any order."""
        one, other = (min(side.ways, key=lambda way: way.cost) for side in (left, right))
        own = tuple(mode for mode in one.order if mode != how.left)
        roles = _roles(own, tuple(mode for mode in other.order if mode != how.right), kept)
        order = (how.made, *roles.batch, *roles.left, *roles.right)
        made = _Ways(
            [Convolved(order, one.cost + other.cost, roles, one, other, how)], left.needs_grad or right.needs_grad
        )
        self.kept |= dict.fromkeys(map(id, made.ways), made)
        return made

    def ordered(self, value: _Ways, modes: Modes) -> _Ways:
        """Choose the cheapest way, including the cost of a final copy into this order.

        Another term that uses a part of it has to take the same way there, so that the part is made once.
        """
        extra = size_of(self.plan, modes) + OVERHEAD
        best = min(value.ways, key=lambda way: way.cost + (extra if way.order != modes else 0))
        waiting = [best]
        for way in waiting:
            if not isinstance(way, Given):
                self.kept[id(way)].ways = [way]
                waiting += [way.left, way.right]
        return _Ways([best], value.needs_grad)

    def add(self, values: Sequence[tuple[int, _Ways]]) -> _Ways:
        """Return the ways of all terms, with their signs."""
        self.terms = [(sign, value.ways[0]) for sign, value in values]
        return values[0][1]


def lay_out(plan: Plan) -> list[tuple[int, Laid]]:
    """Find the cheapest way to run each term of a plan, and its sign.

    A final copy counts if the result is not in the order of the answer.
    """
    network = plan.network
    grads = [
        plan.training and (network.is_trained(n) if n in network.nodes else plan.x_needs_grad) for n in plan.operands
    ]
    given = [_Ways([Given(n, modes)], grads[n]) for n, modes in enumerate(plan.inputs)]
    backend = _Backend(plan)
    alone = run(plan, given, backend).ways[0]
    return backend.terms or [(1, alone)]


def _ways(plan: Plan, left: Laid, right: Laid, kept: Modes, *, right_grad: bool) -> Iterator[Way]:
    """Yield every way to compute the result of a step from one way of each operand."""
    roles = _roles(left.order, right.order, kept)
    cost = left.cost + right.cost
    if not roles.summed:
        big, small = sorted((left.order, right.order), key=lambda order: -size_of(plan, order))
        order = (*big, *(mode for mode in small if mode not in big))
        yield Way(order, cost, roles, left, right, left.order, right.order)
        return
    for summed in _orders(right.order, roles.summed):
        for batch in _orders(right.order, roles.batch):
            at = Roles(batch, roles.left, roles.right, summed)
            for left_order, left_cost in _readings(plan, left.order, batch, at.left, summed):
                for right_order, right_cost in _readings(plan, right.order, batch, at.right, summed):
                    total = cost + left_cost + right_cost + (_slowness(plan, at, right_order) if right_grad else 0.0)
                    for swapped, free in ((False, at.left + at.right), (True, at.right + at.left)):
                        yield Way(batch + free, total, at, left, right, left_order, right_order, swapped)


def _roles(left: Modes, right: Modes, kept: Modes) -> Roles:
    both = [mode for mode in left if mode in right]
    return Roles(
        tuple(mode for mode in both if mode in kept),
        tuple(mode for mode in left if mode not in right),
        tuple(mode for mode in right if mode not in left),
        tuple(mode for mode in both if mode not in kept),
    )


def _orders(other: Modes, modes: Modes) -> Iterable[Modes]:
    """Return these modes in the order given and in the order of the other operand."""
    return dict.fromkeys((modes, tuple(mode for mode in other if mode in modes)))


def _readings(plan: Plan, order: Modes, batch: Modes, free: Modes, summed: Modes) -> Iterator[tuple[Modes, float]]:
    """Yield the orders in which an operand can be read as a matrix or a batch of them, with the cost of copying."""
    for wanted in dict.fromkeys((batch + free + summed, batch + summed + free)):
        yield wanted, 0.0 if wanted == order else size_of(plan, order) + OVERHEAD


def _slowness(plan: Plan, roles: Roles, right_order: Modes) -> float:
    """Return the extra cost of the gradient of the right operand if its short side is innermost."""
    free, summed = size_of(plan, roles.right), size_of(plan, roles.summed)
    inner, outer = (summed, free) if right_order[-1:] == roles.summed[-1:] else (free, summed)
    return size_of(plan, roles.left) * free * summed / SLOW if inner * SKINNY <= outer else 0.0


def size_of(plan: Plan, modes: Modes) -> int:
    """Return the product of the sizes of these modes."""
    return math.prod(plan.size(mode) for mode in modes)
