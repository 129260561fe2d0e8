"""The cost of a contraction order: what a question is, what its steps cost, and what an objective makes small."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tnadapt._errors import PlanError

__all__ = ["FIXED", "OBJECTIVES", "TRAINING", "Convolution", "Cost", "Objective", "shared_by"]

# The number of flops that weigh as much as one number read or written. The speeds of two CPU cores (70 GFLOP/s,
# 2.2 G numbers/s) suggest 32. Of 1, 4, 8, 16 and 32, 8 ran fastest on VeRA (rank 16 and 64) and TeRA (8, 4, 4) at 128
# and 1,024 tokens.
MOVED = 8.0
CALL = (
    2**18
)  # numbers whose move weighs as much as the call of a transform, 30 us: at one token, C3A's blocks of 64 gain
STEP = 2.0**16  # the flops that weigh as much as the call of an operation, 3 us at 2.2 G numbers/s
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
    """What the planner minimizes: forward flops plus the other costs by their weights, each weight in flops.

    `step` is the weight of each step itself, whatever its size. `apart` weighs the steps that x takes no part in: below
    1 if their results serve many calls.
    """

    name: str
    backward: float = 0.0
    saved: float = 0.0
    moved: float = 0.0
    step: float = 0.0
    apart: float = 1.0

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
"""What a plan can minimize, by name."""


# On an H100, by its published 989 TFLOP/s and 3.35 TB/s, of bf16: 590 flops in the time of a number, and 5e9 in that of
# a launch, 5 us. No GPU has confirmed that these weights choose well.
CUDA = Objective("training on cuda", backward=1.0, saved=1.0, moved=590.0, step=5e9)

TRAINING = {"cpu": OBJECTIVES["training"], "cuda": CUDA}
"""What the bindings minimize in training, by the type of a device."""
FIXED = {
    "cpu": Objective("fixed factors", moved=MOVED, step=STEP, apart=1e-6),
    "cuda": Objective("fixed factors on cuda", moved=CUDA.moved, step=CUDA.step, apart=1e-6),
}
"""The same for calls in which no factor changes: what is made of factors alone is made once, and only breaks ties."""


def shared_by(machine: str, sites: int) -> Objective:
    """Return the objective of training on a type of device, where so many sites share the products of factors alone.

    Those of all sites are made in one step, so that each site bears its part of it.
    """
    goal = TRAINING[machine]
    return replace(goal, name=f"{goal.name}, products of {sites} sites", step=goal.step or STEP, apart=1.0 / sites)


@dataclass(frozen=True)
class Order:
    """A contraction order as pairs of numbers: step n makes number len(inputs) + n.

    `exact` says whether the order is proven to be the cheapest. `pattern` is the number of a cyclic operand that is in
    no pair, since the operands of its modes are convolved instead.
    """

    pairs: tuple[Pair, ...]
    exact: bool
    pattern: int | None = None


@dataclass(frozen=True)
class Question:
    """What to contract: the modes of each operand and of the answer, sizes, and which operands need a gradient.

    `activations` marks x and everything x takes part in. Only activations count as saved, since factors are kept
    anyway. `cyclic` has the nonzero entry of each operand that is a frozen cyclic pattern of three modes of one size,
    and 0 for every other operand; it is empty if there are none.
    """

    inputs: tuple[Modes, ...]
    answer: Modes
    sizes: Mapping[str, int]
    needs_grad: tuple[bool, ...]
    activations: tuple[bool, ...]
    cyclic: tuple[float, ...] = ()

    def part(self, numbers: Sequence[int]) -> "Question":
        """Return the question about these operands alone."""
        return replace(
            self,
            inputs=tuple(self.inputs[number] for number in numbers),
            needs_grad=tuple(self.needs_grad[number] for number in numbers),
            activations=tuple(self.activations[number] for number in numbers),
            cyclic=tuple(self.cyclic[number] for number in numbers if self.cyclic),
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
class Convolution:
    """What a step does in place of a cyclic pattern: convolve its operands circularly, along one mode of each.

    The pattern, operand number `pattern`, has the modes `left` of the left operand, `right` of the right one and `made`
    of the result, all of the size `size`, and the entry `amount` where the index of its first mode is the sum of the
    others. If that mode is `left`, the spectrum of the right operand is conjugated, and the other way round.
    """

    pattern: int
    left: str
    right: str
    made: str
    size: int
    amount: float
    conjugated: Literal["", "left", "right"]

    @property
    def frequencies(self) -> int:
        """The number of frequencies of a real signal."""
        return self.size // 2 + 1

    @property
    def transform(self) -> int:
        """The flops of one real transform, 5/2 n log2(n)."""
        return math.ceil(2.5 * self.size * math.log2(self.size))


@dataclass(frozen=True)
class Line:
    """A step of a program: the numbers of its operands, and the modes of its result."""

    left: int
    right: int
    modes: Modes
    convolution: Convolution | None = None


@dataclass(frozen=True)
class _Work:
    """What a step costs by itself.

    `kept` is the size of what is kept of each side if it has to be, `peak` that of the intermediates that it has alive
    at once, its result included.
    """

    forward: int
    backward: int
    kept: tuple[int, int]
    peak: int
    moved: int


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
    saved: set[tuple[int, str]] = set()
    steps: list[Cost] = []
    alive = peak = 0
    for number, line in enumerate(lines):
        left, right = line.left, line.right
        work = _work(question, line, (modes[left], modes[right]), (grad[left], grad[right]))
        spectra = (line.convolution.left, line.convolution.right) if line.convolution else ("", "")
        kept = {
            (side, spectrum): size
            for side, other, spectrum, size in zip((left, right), (right, left), spectra, work.kept, strict=True)
            if grad[other] and active[side]
        }
        held = sum(size for key, size in kept.items() if key not in saved)
        saved |= kept.keys()
        peak = max(peak, alive + work.peak)
        modes.append(line.modes)
        grad.append(grad[left] or grad[right])
        active.append(active[left] or active[right])
        done = {
            side for side in (left, right, len(modes) - 1) if side >= len(question.inputs) and last.get(side) == number
        }
        alive += _size(question, line.modes) - sum(_size(question, modes[side]) for side in done)
        steps.append(Cost(work.forward, work.backward, held, peak, work.moved))
    total = Cost(
        sum(step.forward for step in steps),
        sum(step.backward for step in steps),
        sum(step.saved for step in steps),
        peak,
        sum(step.moved for step in steps),
    )
    return tuple(steps), total


def _work(question: Question, line: Line, modes: tuple[Modes, Modes], grads: tuple[bool, bool]) -> _Work:
    """Return what a step costs, given the modes of its sides and which of them need a gradient."""
    if line.convolution:
        return _work_in_spectrum(question, line, line.convolution, modes, grads)
    union = {*modes[0], *modes[1]}
    forward = _size(question, union) * (1 if len(line.modes) == len(union) else 2)
    left, right, made = (_size(question, some) for some in (*modes, line.modes))
    return _Work(forward, forward * sum(grads), (left, right), made, (left + right + made) * (1 + sum(grads)))


def _work_in_spectrum(
    question: Question, line: Line, how: Convolution, modes: tuple[Modes, Modes], grads: tuple[bool, bool]
) -> _Work:
    """Return what a step costs in the frequency domain, where a number is complex: two, and four times the flops.

    Both sides are transformed, multiplied, and the product is transformed back. The backward pass transforms the
    gradient of the result, multiplies once for each side that needs a gradient, and transforms that back.
    """
    free = {*modes[0], *modes[1]} - {how.left, how.right}
    sums = len(free) > len({*line.modes} - {how.made})
    product = 4 * how.frequencies * _size(question, free) * (2 if sums else 1)
    sizes = [_size(question, some) for some in (*modes, line.modes)]
    lines = [size // how.size for size in sizes]  # how many are transformed
    flops = [number * how.transform for number in lines]
    spectra = [2 * how.frequencies * number for number in lines]
    forward = product + sum(flops)
    backward = flops[2] * any(grads) + sum(product + flops[side] for side in (0, 1) if grads[side])
    moved = sum(sizes) + 2 * sum(spectra) + (sizes[2] + spectra[2]) * any(grads)
    moved += sum(sum(spectra) + spectra[side] + sizes[side] for side in (0, 1) if grads[side])
    moved += CALL * (len(sizes) + any(grads) + sum(grads))
    return _Work(forward, backward, (spectra[0], spectra[1]), max(sum(spectra), spectra[2] + sizes[2]), moved)


def _size(question: Question, modes: Collection[str]) -> int:
    return math.prod(question.sizes[mode] for mode in modes)
