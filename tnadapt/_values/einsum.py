"""Contractions of arrays whose modes have names, in numpy float64, with the order searched once for each question."""

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
SMALL = 10**6  # flops without any order; below, the search for a good one takes longer than a bad one


def contract(operands: Iterable[Operand], answer: Modes) -> Array:
    """The product of all operands, summed over every mode that is not in the answer; each answer mode has a carrier."""
    arrays, modes = zip(*operands, strict=True)
    expression = _expression(modes, tuple(array.shape for array in arrays), answer)
    return np.asarray(expression(*arrays), dtype=np.float64)


def primed(operands: Iterable[Operand], shared: Collection[str]) -> list[Operand]:
    """The operands with every mode but the shared ones under another name: the other side of an inner product."""
    return [(array, tuple(mode if mode in shared else f"{mode}'" for mode in modes)) for array, modes in operands]


@lru_cache(maxsize=4096)
def _expression(modes: tuple[Modes, ...], shapes: tuple[tuple[int, ...], ...], answer: Modes) -> Any:
    sizes: dict[str, int] = {}
    for one, shape in zip(modes, shapes, strict=True):
        sizes |= dict(zip(one, shape, strict=True))
    search = "greedy" if math.prod(sizes.values()) < SMALL else "auto-hq"
    return opt_einsum.contract_expression(equation_of(modes, answer), *shapes, optimize=search)
