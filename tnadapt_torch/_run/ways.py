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
    """What a device does slowly, in the time that it takes to copy one number in one pass.

    `call` is one more operation, `function` what a product with gradients written by Python takes longer, `piece` an
    item of a batch that the library for matrices does not take as a whole. The gradient of a factor whose short side
    lies innermost, where the other is `skinny` times as long or more, takes as long as copying 1 / `slow` of its
    multiplications.
    """

    call: int
    function: int
    piece: int
    skinny: int
    slow: float


# On one core a number takes 1 ns. On an H100 a number of bf16 takes 1.2 ps and a launch 5 us, and no product is slow
# for how its operands lie; what Python does longer is hidden behind long kernels, and costs two launches elsewhere.
CPU = Machine(call=2048, function=20_000, piece=1000, skinny=4, slow=8.0)
CUDA = Machine(call=4_000_000, function=8_000_000, piece=0, skinny=4, slow=math.inf)
MACHINES = {"cpu": CPU, "cuda": CUDA}  # by the type of a device


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
