"""Exact arithmetic modulo a prime: contractions and ranks without rounding, for questions about generic values."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tnadapt._errors import PlanError
from tnadapt._search import OBJECTIVES, Modes, Question, measure, search

__all__: list[str] = []

Residues = npt.NDArray[np.int64]

PRIME = 2**31 - 19
HALF = 16  # bits; products of two halves, summed over up to 2^20 terms, are whole numbers that float64 holds
TERMS = 2**20
GONE = ("(gone)",)  # of an operand that another one has absorbed
PANEL = 32  # columns that are eliminated one by one before the rest is updated at once


def residues(shape: Sequence[int], random: np.random.Generator) -> Residues:
    """Independent uniform residues."""
    return random.integers(0, PRIME, size=tuple(shape), dtype=np.int64)


def question_of(inputs: Sequence[Modes], answer: Modes, sizes: Mapping[str, int]) -> Question:
    """The question that contracts these operands, no gradient asked for."""
    nothing = (False,) * len(inputs)
    used = {mode: sizes[mode] for modes in (*inputs, answer) for mode in modes}
    return Question(tuple(inputs), answer, used, nothing, nothing)


def contract(question: Question, operands: Sequence[Residues], *, most: float = math.inf) -> Residues:
    """The sum over all modes but those of the answer of the product of all operands; axes in the answer's order.

    Raises PlanError where that takes more than `most` flops.
    """
    question, values = _absorb(question, list(operands))
    pairs = search(question, OBJECTIVES["forward"]).pairs
    results, _, cost = measure(question, pairs)
    if cost.forward > most:
        raise PlanError(f"a contraction of {cost.forward:,} flops modulo a prime; the limit is {most:,}.")
    modes = [*question.inputs, *results]
    for (left, right), kept in zip(pairs, results, strict=True):
        values.append(_contract_pair(values[left], modes[left], values[right], modes[right], kept))
    return _keep(values[-1], modes[len(values) - 1], question.answer)


def _absorb(question: Question, values: list[Residues]) -> tuple[Question, list[Residues]]:
    """Multiply every operand into one that has all its modes.

    It costs one pass over the larger one, which is read at least once anyway, and leaves a shorter search.
    """
    inputs = list(question.inputs)
    for place in sorted(range(len(inputs)), key=lambda number: len(inputs[number])):
        small = inputs[place]
        hosts = [
            at for at, modes in enumerate(inputs) if at != place and modes is not GONE and set(small) <= set(modes)
        ]
        if hosts:
            host = min(hosts, key=lambda at: values[at].size)
            kept = tuple(mode for mode in inputs[host] if mode in small)
            shape = [question.sizes[mode] if mode in small else 1 for mode in inputs[host]]
            values[host] = values[host] * _keep(values[place], small, kept).reshape(shape) % PRIME
            inputs[place] = GONE
    left = [place for place, modes in enumerate(inputs) if modes is not GONE]
    rest = question_of([inputs[place] for place in left], question.answer, question.sizes)
    return rest, [values[place] for place in left]


def _contract_pair(left: Residues, left_modes: Modes, right: Residues, right_modes: Modes, kept: Modes) -> Residues:
    both = [mode for mode in left_modes if mode in right_modes]
    batch, summed = (tuple(mode for mode in both if (mode in kept) == wanted) for wanted in (True, False))
    own = tuple(mode for mode in left_modes if mode in kept and mode not in both)
    other = tuple(mode for mode in right_modes if mode in kept and mode not in both)
    left = _keep(left, left_modes, (*batch, *own, *summed))
    right = _keep(right, right_modes, (*batch, *summed, *other))
    sizes = dict(zip((*batch, *own, *summed, *other), left.shape + right.shape[len(batch + summed) :], strict=True))
    lengths = [int(np.prod([sizes[mode] for mode in part], dtype=np.int64)) for part in (batch, own, summed, other)]
    product = multiply(left.reshape(lengths[0], lengths[1], lengths[2]), right.reshape(lengths[0], *lengths[2:]))
    made = (*batch, *own, *other)
    return _keep(product.reshape([sizes[mode] for mode in made]), made, kept)


def _keep(value: Residues, modes: Modes, kept: Modes) -> Residues:
    """The value with these axes in this order; all others are summed."""
    gone = tuple(axis for axis, mode in enumerate(modes) if mode not in kept)
    if gone:
        value, modes = value.sum(axis=gone) % PRIME, tuple(mode for mode in modes if mode in kept)
    return value.transpose([modes.index(mode) for mode in kept])


def multiply(left: Residues, right: Residues) -> Residues:
    """The product of two matrices, or of two batches of them: halves of the numbers by float64, then put together."""
    terms = left.shape[-1]
    if terms == 1:
        return left * right % PRIME
    if terms > TERMS:
        parts = [slice(start, start + TERMS) for start in range(0, terms, TERMS)]
        products = [multiply(left[..., part], right[..., part, :]) for part in parts]
        total: Residues = np.sum(products, axis=0) % PRIME
        return total
    high_left, low_left = _halves(left)
    high_right, low_right = _halves(right)
    middle = (high_left @ low_right + low_left @ high_right).astype(np.int64)
    value = (high_left @ high_right).astype(np.int64) % PRIME
    value = ((value << HALF) + middle) % PRIME
    return ((value << HALF) + (low_left @ low_right).astype(np.int64)) % PRIME


def _halves(value: Residues) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return (value >> HALF).astype(np.float64), (value & ((1 << HALF) - 1)).astype(np.float64)


def rank(matrix: Residues) -> int:
    """The rank of a matrix of residues, by elimination, a panel of columns at a time."""
    matrix = np.array(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T)
    rows, columns = matrix.shape
    done = 0
    for start in range(0, columns, PANEL):
        stop = min(start + PANEL, columns)
        factors = _eliminate(matrix, done, start, stop)
        found = factors.shape[1]
        for place in range(1, found):
            top, above = matrix[done + place, stop:], matrix[done : done + place, stop:]
            matrix[done + place, stop:] = (top - multiply(factors[place : place + 1, :place], above)[0]) % PRIME
        update = multiply(factors[found:], matrix[done : done + found, stop:])
        matrix[done + found :, stop:] = (matrix[done + found :, stop:] - update) % PRIME
        done += found
        if done == rows:
            break
    return done


def _eliminate(matrix: Residues, done: int, start: int, stop: int) -> Residues:
    """Eliminate the columns of a panel below row `done`, in place; whole rows change places.

    Gives the factors by which each pivot's row was taken from the rows from `done` on, a column a pivot.
    """
    factors = np.zeros((len(matrix) - done, stop - start), dtype=np.int64)
    found = 0
    for column in range(start, stop):
        top = done + found
        candidates = np.flatnonzero(matrix[top:, column])
        if not len(candidates):
            continue
        pivot = top + int(candidates[0])
        matrix[[top, pivot]] = matrix[[pivot, top]]
        factors[[found, pivot - done]] = factors[[pivot - done, found]]
        inverse = pow(int(matrix[top, column]), -1, PRIME)
        by = matrix[top + 1 :, column] * inverse % PRIME
        factors[found + 1 :, found] = by
        below = matrix[top + 1 :, column:stop]
        matrix[top + 1 :, column:stop] = (below - by[:, None] * matrix[top, column:stop]) % PRIME
        found += 1
    return factors[:, :found]
