"""Sets of modes as bit masks, and the cost of many candidate steps at once.

A mask is a Python int where there are few of them, and an array of words of 60 bits where there are many.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tnadapt._planning.cost import Objective, Question

__all__: list[str] = []

WORD = 60  # bits of a word: a multiple of CHUNK that an int64 holds
CHUNK = 12  # modes whose volumes are looked up at once
LARGEST = 2**500  # volumes stop here, so that the product of two of them is still a float64
Words = npt.NDArray[np.int64]  # shape: (words, ...)
Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Problem:
    """A question without names: bit n of a mask stands for a mode of size `sizes[n]`."""

    operands: tuple[int, ...]
    answer: int
    sizes: tuple[int, ...]
    needs_grad: tuple[bool, ...]
    activations: tuple[bool, ...]

    @property
    def chunks(self) -> int:
        """The number of table look-ups that the volume of one mask takes."""
        return -(-len(self.sizes) // CHUNK)


def problem_of(question: Question) -> Problem:
    """Return the question as masks. Modes that no cost can tell apart are joined where one word would be too short."""
    modes = tuple(dict.fromkeys(mode for modes in (*question.inputs, question.answer) for mode in modes))
    bits = {mode: 1 << place for place, mode in enumerate(modes)}
    operands = tuple(sum(bits[mode] for mode in dict.fromkeys(inputs)) for inputs in question.inputs)
    answer = sum(bits[mode] for mode in dict.fromkeys(question.answer))
    sizes = tuple(question.sizes[mode] for mode in modes)
    if len(sizes) > WORD:
        parts = parts_of((*operands, answer))
        operands, answer = join(operands, parts), join((answer,), parts)[0]
        sizes = tuple(math.prod(sizes[bit] for bit in bits_of(part)) for part in parts)
    return Problem(operands, answer, sizes, question.needs_grad, question.activations)


def parts_of(masks: Sequence[int]) -> list[int]:
    """Return the coarsest partition of all modes in which every mask is a union of parts."""
    parts: list[int] = []
    rest = 0
    for mask in masks:
        split = (piece for part in parts for piece in (part & mask, part & ~mask))
        parts = [piece for piece in (*split, mask & ~rest) if piece]
        rest |= mask
    return parts


def join(masks: Sequence[int], parts: Sequence[int]) -> tuple[int, ...]:
    """Return each mask with one bit for each part."""
    return tuple(sum(1 << place for place, part in enumerate(parts) if mask & part) for mask in masks)


def bits_of(mask: int) -> list[int]:
    """Return the places of the bits that are set."""
    places = []
    while mask:
        low = mask & -mask
        places.append(low.bit_length() - 1)
        mask ^= low
    return places


def words_of(masks: Sequence[int], count: int) -> Words:
    """Return masks over `count` modes as words. shape: (words, masks)."""
    low = (1 << WORD) - 1
    starts = range(0, max(count, 1), WORD)
    return np.array([[(mask >> start) & low for mask in masks] for start in starts], dtype=np.int64)


class Volumes:
    """The product of the sizes of the modes in a mask, for many masks at once."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """Tabulate the volumes of every subset of each run of 12 modes."""
        self.large = math.prod(sizes) > LARGEST
        numbers = [float(min(size, LARGEST)) for size in sizes]
        self.chunks = [self._table(numbers[start : start + CHUNK]) for start in range(0, len(numbers), CHUNK)]

    def _table(self, sizes: Sequence[float]) -> Floats:
        table = np.ones(1)
        for size in sizes:
            table = np.concatenate([table, self._cut(table * size)])
        return table

    def _cut(self, volumes: Floats) -> Floats:
        return np.minimum(volumes, float(LARGEST)) if self.large else volumes

    def of(self, masks: Words) -> Floats:
        """Return the volume of each mask."""
        product: Floats = np.ones(masks.shape[1:])
        for number, table in enumerate(self.chunks):
            word, place = divmod(CHUNK * number, WORD)
            product = self._cut(product * table[(masks[word] >> place) & (len(table) - 1)])
        return product


class Tensors:
    """Numbered tensors: the modes of each, its size, whether it needs a gradient, whether it is an activation."""

    def __init__(self, volumes: Volumes, kept: Words, grad: Flags, active: Flags) -> None:
        """Look up the size of each tensor."""
        self.volumes, self.kept, self.grad, self.active = volumes, kept, grad, active
        self.size = volumes.of(kept)

    def terms(self, left: Numbers, right: Numbers, whole: Numbers, objective: Objective) -> list[Floats]:
        """Return the terms of the objective of the steps that make each whole of its left and its right side."""
        both = self.kept[:, left] | self.kept[:, right]
        sums = (both != self.kept[:, whole]).any(axis=0)
        grad_left, grad_right = self.grad[left], self.grad[right]
        products = grad_left.astype(float) + grad_right  # of the backward pass
        forward = self.volumes.of(both) * np.where(sums, 2.0, 1.0)
        terms: list[Floats] = [forward * (1.0 + objective.backward * products)]
        if objective.saved:
            keep_left = self.size[left] * (grad_right & self.active[left])
            keep_right = self.size[right] * (grad_left & self.active[right])
            terms.append(objective.saved * (keep_left + keep_right))
        if objective.moved:
            moved = self.size[left] + self.size[right] + self.size[whole]
            terms.append(objective.moved * moved * (1.0 + products))
        if objective.step:
            terms.append(np.full(len(whole), objective.step))
        if objective.apart != 1.0:
            weights = np.where(self.active[whole], 1.0, objective.apart)
            terms = [term * weights for term in terms]
        return terms
