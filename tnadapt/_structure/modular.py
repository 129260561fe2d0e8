"""Exact arithmetic modulo a prime: contractions and matrix ranks without rounding, at generic values."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tnadapt._errors import PlanError
from tnadapt._planning import OBJECTIVES, Modes, Question, measure, search

__all__: list[str] = []

Residues = npt.NDArray[np.int64]

PRIME = 2**31 - 19
HALF = 16  # bits; a sum of up to 2^20 products of two halves is an integer that float64 represents exactly
TERMS = 2**20
MOST_ENTRIES = 2**26  # half a GB
GONE = ("(gone)",)  # the modes of an operand that was multiplied into another
PANEL = 32  # columns that are eliminated one by one


class Budget:
    """A limit on work, in flops and in entries of one array. Raises PlanError when it is exceeded."""

    def __init__(self, what: str, *, flops: int, entries: int = MOST_ENTRIES) -> None:
        """Set the limits.

        Args:
            what: the name that begins the error message.
            flops: the most flops in total.
            entries: the most entries of one array.
        """
        self.what = what
        self.flops = self.left = flops
        self.entries = entries

    def spend(self, flops: int, entries: int = 0) -> None:
        """Subtract flops. Raises PlanError if none are left, or if an array of `entries` entries is too large."""
        self.left -= flops
        if self.left < 0:
            raise PlanError(f"{self.what}: expected at most {self.flops:,} flops modulo a prime, got more.")
        if entries > self.entries:
            raise PlanError(
                f"{self.what}: expected arrays of at most {self.entries:,} entries, got one of {entries:,}."
            )


def residues(shape: Sequence[int], random: np.random.Generator) -> Residues:
    """Draw independent uniform residues."""
    return random.integers(0, PRIME, size=tuple(shape), dtype=np.int64)


def question_of(inputs: Sequence[Modes], answer: Modes, sizes: Mapping[str, int]) -> Question:
    """Return the planner's question for contracting these operands without gradients."""
    nothing = (False,) * len(inputs)
    used = {mode: sizes[mode] for modes in (*inputs, answer) for mode in modes}
    return Question(tuple(inputs), answer, used, nothing, nothing)


def contract(question: Question, operands: Sequence[Residues], budget: Budget) -> Residues:
    """Return the product of all operands, summed over every mode that is not in the answer.

    The axes have the answer's order. Raises PlanError if this takes more work than is left of the budget.
    """
    question, values = _absorb(question, list(operands))
    pairs = search(question, OBJECTIVES["forward"]).pairs
    results, _, cost = measure(question, pairs)
    budget.spend(cost.forward, cost.peak)
    modes = [*question.inputs, *results]
    for (left, right), kept in zip(pairs, results, strict=True):
        values.append(_contract_pair(values[left], modes[left], values[right], modes[right], kept))
    return _keep(values[-1], modes[len(values) - 1], question.answer)


def _absorb(question: Question, values: list[Residues]) -> tuple[Question, list[Residues]]:
    """Multiply every operand into another one that has all its modes, if there is one.

    This costs one pass over the larger operand, which is read at least once anyway, and shortens the search.
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
    """Return the value with these axes in this order, summed over all others."""
    gone = tuple(axis for axis, mode in enumerate(modes) if mode not in kept)
    if gone:
        value, modes = value.sum(axis=gone) % PRIME, tuple(mode for mode in modes if mode in kept)
    return value.transpose([modes.index(mode) for mode in kept])


def multiply(left: Residues, right: Residues) -> Residues:
    """Return the product of two matrices or two batches of matrices.

    The 16-bit halves of the entries are multiplied in float64, and their products are then combined.
    """
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


def rank(matrix: Residues, budget: Budget) -> int:
    """Return the rank of a matrix of residues, by recursive elimination, which is mostly matrix products.

    Raises PlanError if this takes more work than is left of the budget.
    """
    budget.spend(matrix.size * min(matrix.shape), matrix.size)
    matrix = np.array(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T)
    return _eliminate(matrix, np.zeros_like(matrix), 0, slice(0, matrix.shape[1]))


def _eliminate(matrix: Residues, lower: Residues, done: int, columns: slice) -> int:
    """Eliminate these columns below row `done`, in place, and return the number of pivots found.

    Column n of `lower` receives the multiples of pivot row n that were subtracted from the rows below it. Rows are
    swapped in both matrices.
    """
    width = columns.stop - columns.start
    if width <= PANEL or done == len(matrix):
        return _eliminate_one_by_one(matrix, lower, done, columns)
    middle = columns.start + width // 2
    found = _eliminate(matrix, lower, done, slice(columns.start, middle))
    pivots, rest = slice(done, done + found), slice(middle, columns.stop)
    _solve(lower[pivots, pivots], matrix[pivots, rest])
    update = multiply(lower[pivots.stop :, pivots], matrix[pivots, rest])
    matrix[pivots.stop :, rest] = (matrix[pivots.stop :, rest] - update) % PRIME
    return found + _eliminate(matrix, lower, pivots.stop, rest)


def _solve(lower: Residues, block: Residues) -> None:
    """Multiply a block, in place, by the inverse of a unit lower triangular matrix whose diagonal is not stored."""
    half = len(lower) // 2
    if half:
        _solve(lower[:half, :half], block[:half])
        block[half:] = (block[half:] - multiply(lower[half:, :half], block[:half])) % PRIME
        _solve(lower[half:, half:], block[half:])


def _eliminate_one_by_one(matrix: Residues, lower: Residues, done: int, columns: slice) -> int:
    top = done
    for column in range(columns.start, columns.stop):
        candidates = np.flatnonzero(matrix[top:, column])
        if not len(candidates):
            continue
        pivot = top + int(candidates[0])
        for array in (matrix, lower):
            array[[top, pivot]] = array[[pivot, top]]
        by = matrix[top + 1 :, column] * pow(int(matrix[top, column]), -1, PRIME) % PRIME
        lower[top + 1 :, top] = by
        below = matrix[top + 1 :, column : columns.stop]
        below -= by[:, None] * matrix[top, column : columns.stop] % PRIME
        below %= PRIME
        top += 1
    return top - done
