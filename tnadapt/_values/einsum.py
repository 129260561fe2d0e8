"""Contract arrays with named modes in numpy float64. The contraction order is searched once per equation and shapes."""

import math
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import opt_einsum

from tnadapt._planning import equation_of

__all__: list[str] = []

Array = npt.NDArray[np.float64]
Modes = tuple[str, ...]
Operand = tuple[Array, Modes]
SMALL = 10**6  # terms of the whole sum; below this, a thorough search takes longer than it saves


def contract(operands: Iterable[Operand], answer: Modes) -> Array:
    """Return the product of all operands, summed over every mode that is not in the answer.

    Every mode of the answer must be a mode of some operand.
    """
    arrays, modes = zip(*operands, strict=True)
    expression = _expression(modes, tuple(array.shape for array in arrays), answer)
    return np.asarray(expression(*arrays), dtype=np.float64)


def primed(operands: Iterable[Operand], shared: Collection[str]) -> list[Operand]:
    """Return the operands with every mode renamed but the shared ones: the other side of an inner product."""
    return [(array, tuple(mode if mode in shared else f"{mode}'" for mode in modes)) for array, modes in operands]


@lru_cache(maxsize=4096)
def _expression(modes: tuple[Modes, ...], shapes: tuple[tuple[int, ...], ...], answer: Modes) -> Any:
    sizes: dict[str, int] = {}
    for one, shape in zip(modes, shapes, strict=True):
        sizes |= dict(zip(one, shape, strict=True))
    search = "greedy" if math.prod(sizes.values()) < SMALL else "auto-hq"
    return opt_einsum.contract_expression(equation_of(modes, answer), *shapes, optimize=search)
