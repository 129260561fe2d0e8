"""The values of a layout: in which order the axes of an array lie, how that was computed, and what it costs."""

import math
from dataclasses import dataclass

from tnadapt.binding import Convolution, Plan

__all__: list[str] = []

Modes = tuple[str, ...]
Form = tuple[int, int, int]
FORMS: tuple[Form, ...] = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 0, 1))  # orders of three axes, the first one never last


@dataclass(frozen=True)
class Machine:
    """What a device does slowly, in the time in which it reads a number and writes it elsewhere.

    `call`: one more operation.
    `copy`: a number copied in long rows; `turn`: by itself, since another axis becomes the last; `scatter`: if that or
    the former one are the tokens.
    `function`: what a product with gradients that Python writes takes longer; a fifth of that without gradients.
    `item`: one more product in a batch; `piece`: in one that the library for matrices does not take as a whole.
    `row`: a row of a matrix that is read or written a page or more behind the last one, at most `far` for a number.
    `against`: a number of a product whose operands both lie against the order of its result.
    `slow`: the gradient of a factor whose short side lies innermost, where the other is `skinny` times as long or more,
    takes as long as copying 1 / `slow` of its multiplications.
    """

    call: int
    copy: float
    turn: float
    scatter: float
    function: int
    item: int
    piece: int
    row: float
    far: float
    against: float
    skinny: int
    slow: float


# On one core a number takes 1 ns. On an H100 a number of bf16 takes 1.2 ps and a launch 5 us, and no product is slow
# for how its operands lie; what Python does longer is hidden behind long kernels, and costs two launches elsewhere.
CPU = Machine(
    call=2048,
    copy=0.5,
    turn=2.5,
    scatter=16.0,
    function=60_000,
    item=100,
    piece=1000,
    row=50,
    far=1.5,
    against=0.3,
    skinny=4,
    slow=8.0,
)
CUDA = Machine(
    call=4_000_000,
    copy=1.0,
    turn=1.5,
    scatter=1.5,
    function=4_000_000,
    item=0,
    piece=0,
    row=0,
    far=0.0,
    against=0.0,
    skinny=4,
    slow=math.inf,
)
MACHINES = {"cpu": CPU, "cuda": CUDA}  # by the type of a device
PAGE = 1024  # numbers of float32


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
    orders in which the operands are read, after a copy if they are stored in another order. `form` is the order of the
    axes (batch, left, right) of the result. If `strided`, `multiply` writes the result and the gradients. Then one side
    may be `repeated`: the batch are modes of the other side alone.
    """

    order: Modes
    cost: float
    roles: Roles
    left: "Laid"
    right: "Laid"
    left_order: Modes
    right_order: Modes
    form: Form = FORMS[0]
    strided: bool = False
    repeated: int | None = None  # the number of the side: 0 or 1

    @property
    def swapped(self) -> bool:
        """Whether the axes of the right operand come first in the result."""
        return self.form.index(2) < self.form.index(1)


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


def size_of(plan: Plan, modes: Modes) -> int:
    """Return the product of the sizes of these modes."""
    return math.prod(plan.size(mode) for mode in modes)


def cost_of_copy(plan: Plan, machine: Machine, order: Modes, wanted: Modes) -> float:
    """Return the cost of a copy into another order of the axes."""
    pairs = zip(order[::-1], wanted[::-1], strict=True)
    same = next((number for number, (one, other) in enumerate(pairs) if one != other), len(order))
    run = size_of(plan, order[len(order) - same :])
    is_far = run == 1 and plan.ask == "apply" and plan.answer[0] in (order[-1], wanted[-1])
    number = machine.scatter if is_far else machine.copy + (machine.turn - machine.copy) / (1.0 + (run - 1.0) / 4.0)
    return number * size_of(plan, order) + machine.call
