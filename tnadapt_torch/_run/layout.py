"""Choose the axis order of each intermediate of a plan, so that little is copied and no matrix product is slow.

A product knows three axes: those that both operands keep (the batch), those of one operand alone, and those summed. A
library for matrices reads and writes an array without a copy if the modes of each axis are adjacent in it, in the same
order everywhere, and the batch is not last. So an array that suits the step that makes it and the step that reads it is
never copied, and neither is its gradient, which lies as it does and passes the same two steps. Trying all such orders
at every step covers a whole plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tnadapt.binding import Convolution, Plan, run
from tnadapt_torch._run.choices import Choices, roles_of
from tnadapt_torch._run.ways import CPU, Convolved, Given, Laid, Machine, Modes, Way, cost_of_copy

__all__: list[str] = []

KEEP = 32  # number of ways kept for each intermediate


@dataclass
class _Ways:
    """The ways kept for an operand or an intermediate, and whether it needs a gradient."""

    ways: Sequence[Laid]
    needs_grad: bool


class _Backend:
    """A backend that runs a plan on ways to lay arrays out instead of on arrays."""

    def __init__(self, plan: Plan, machine: Machine) -> None:
        self.plan, self.machine = plan, machine
        self.kept: dict[int, _Ways] = {}  # by the identity of a way, which they hold
        self.terms: list[tuple[int, Laid]] = []

    def contract(self, left: _Ways, right: _Ways, kept: Modes, wanted: Modes) -> _Ways:
        """Find the cheapest way for each order of the result's axes."""
        found: dict[Modes, Way] = {}
        grads = (left.needs_grad, right.needs_grad)
        for one in left.ways:
            for other in right.ways:
                Choices(self.plan, self.machine, (one, other), kept, grads).add_to(found)
        made = _Ways(sorted(found.values(), key=lambda way: way.cost)[:KEEP], left.needs_grad or right.needs_grad)
        self.kept |= dict.fromkeys(map(id, made.ways), made)
        return made

    def convolve(self, left: _Ways, right: _Ways, kept: Modes, how: Convolution) -> _Ways:
        """Take the cheapest way of each side: a transform reads any order."""
        one, other = (min(side.ways, key=lambda way: way.cost) for side in (left, right))
        own = tuple(mode for mode in one.order if mode != how.left)
        roles = roles_of(own, tuple(mode for mode in other.order if mode != how.right), kept)
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

        def cost(way: Laid) -> float:
            copy = cost_of_copy(self.plan, self.machine, way.order, modes) if way.order != modes else 0.0
            return way.cost + (1 + value.needs_grad) * copy

        best = min(value.ways, key=cost)
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


def lay_out(plan: Plan, machine: Machine = CPU) -> list[tuple[int, Laid]]:
    """Find the cheapest way to run each term of a plan, and its sign.

    A final copy counts if the result is not in the order of the answer.
    """
    network = plan.network
    grads = [
        plan.training and (network.is_trained(n) if n in network.nodes else plan.x_needs_grad) for n in plan.operands
    ]
    given = [_Ways([Given(n, modes)], grads[n]) for n, modes in enumerate(plan.inputs)]
    backend = _Backend(plan, machine)
    alone = run(plan, given, backend).ways[0]
    return backend.terms or [(1, alone)]
