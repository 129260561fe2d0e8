"""The cost of a contraction order: what a question is, what its steps cost, and what an objective makes small."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from tnadapt._errors import PlanError

__all__ = ["OBJECTIVES", "Cost", "Objective"]

# The number of flops that weigh as much as one number read or written. The speeds of two CPU cores (70 GFLOP/s,
# 2.2 G numbers/s) suggest 32. Of 1, 4, 8, 16 and 32, 8 ran fastest on VeRA (rank 16 and 64) and TeRA (8, 4, 4) at 128
# and 1,024 tokens.
MOVED = 8.0
Modes = tuple[str, ...]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Cost:
    """The cost of one or more steps: `forward` and `backward` in flops, the others in elements.

    `saved` is what is kept for the backward pass. `peak` is the largest number of elements of intermediates alive at
    once. `moved` is what the products of both passes read and write.
    """

    forward: int
    backward: int
    saved: int
    peak: int
    moved: int


@dataclass(frozen=True)
class Objective:
    """What the planner minimizes: forward flops plus the other costs by their weights, each weight in flops."""

    name: str
    backward: float = 0.0
    saved: float = 0.0
    moved: float = 0.0

    def of(self, cost: Cost) -> float:
        """Return the number to minimize."""
        return cost.forward + self.backward * cost.backward + self.saved * cost.saved + self.moved * cost.moved


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("forward"),
        Objective("flops", backward=1.0),
        Objective("training", backward=1.0, saved=1.0, moved=MOVED),
        Objective("memory", backward=1e-6, saved=1e6),
    )
}


@dataclass(frozen=True)
class Order:
    """A contraction order as pairs of numbers: step n makes number len(inputs) + n.

    `exact` says whether the order is proven to be the cheapest.
    """

    pairs: tuple[Pair, ...]
    exact: bool


@dataclass(frozen=True)
class Question:
    """What to contract: the modes of each operand and of the answer, sizes, and which operands need a gradient.

    `activations` marks x and everything x takes part in. Only activations count as saved, since factors are kept
    anyway.
    """

    inputs: tuple[Modes, ...]
    answer: Modes
    sizes: Mapping[str, int]
    needs_grad: tuple[bool, ...]
    activations: tuple[bool, ...]

    def part(self, numbers: Sequence[int]) -> "Question":
        """Return the question about these operands alone."""
        return replace(
            self,
            inputs=tuple(self.inputs[number] for number in numbers),
            needs_grad=tuple(self.needs_grad[number] for number in numbers),
            activations=tuple(self.activations[number] for number in numbers),
        )


def check_sizes(question: Question) -> None:
    """Raise PlanError for a mode whose size is missing or not a positive integer."""
    for mode in dict.fromkeys(mode for modes in (*question.inputs, question.answer) for mode in modes):
        size = question.sizes.get(mode)
        if not isinstance(size, int) or size < 1:
            raise PlanError(
                f"mode {mode!r}: expected an integer size of at least 1, got {size!r}.\nGive the mode such a size."
            )


@dataclass(frozen=True)
class Line:
    """A step of a program: the numbers of its operands, and the modes of its result."""

    left: int
    right: int
    modes: Modes


def lines_of(question: Question, pairs: Sequence[Pair]) -> list[Line]:
    """Return the steps of an order with the modes of their results: those that the answer or a later step needs."""
    modes, waiting = list(question.inputs), set(range(len(question.inputs)))
    lines = []
    for left, right in pairs:
        waiting -= {left, right}
        needed = {*question.answer, *(mode for number in waiting for mode in modes[number])}
        union = tuple(dict.fromkeys((*modes[left], *modes[right])))
        lines.append(Line(left, right, tuple(mode for mode in union if mode in needed)))
        waiting.add(len(modes))
        modes.append(lines[-1].modes)
    return lines


def measure(question: Question, pairs: Sequence[Pair]) -> tuple[tuple[Modes, ...], tuple[Cost, ...], Cost]:
    """Return the modes and the cost of each step of an order, and the total cost, in exact integers."""
    lines = lines_of(question, pairs)
    return tuple(line.modes for line in lines), *measure_lines(question, lines)


def measure_lines(
    question: Question, lines: Sequence[Line], results: Sequence[int] = ()
) -> tuple[tuple[Cost, ...], Cost]:
    """Return the cost of each step and the total cost, in exact integers.

    `results` are the numbers whose sum is the answer, if it is a sum; each is added to the sum once it is made.
    """
    modes, grad, active = list(question.inputs), list(question.needs_grad), list(question.activations)
    last = {side: number for number, line in enumerate(lines) for side in (line.left, line.right)}
    last |= {result: max(result - len(modes), last.get(result, 0)) for result in results[1:]}
    saved: set[int] = set()
    steps: list[Cost] = []
    alive = peak = 0
    for number, line in enumerate(lines):
        left, right = line.left, line.right
        union = {*modes[left], *modes[right]}
        forward = _size(question, union) * (1 if len(line.modes) == len(union) else 2)
        sizes = [_size(question, modes[side]) for side in (left, right)]
        kept = [side for side, other in ((left, right), (right, left)) if grad[other] and active[side]]
        new = {*kept} - saved
        saved |= new
        made = _size(question, line.modes)
        peak = max(peak, alive + made)
        modes.append(line.modes)
        grad.append(grad[left] or grad[right])
        active.append(active[left] or active[right])
        done = {
            side for side in (left, right, len(modes) - 1) if side >= len(question.inputs) and last.get(side) == number
        }
        alive += made - sum(_size(question, modes[side]) for side in done)
        products = grad[left] + grad[right]
        held = sum(_size(question, modes[side]) for side in new)
        steps.append(Cost(forward, forward * products, held, peak, (sum(sizes) + made) * (1 + products)))
    total = Cost(
        sum(step.forward for step in steps),
        sum(step.backward for step in steps),
        sum(step.saved for step in steps),
        peak,
        sum(step.moved for step in steps),
    )
    return tuple(steps), total


def _size(question: Question, modes: Collection[str]) -> int:
    return math.prod(question.sizes[mode] for mode in modes)
