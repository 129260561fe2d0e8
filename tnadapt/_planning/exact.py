"""The cheapest contraction order, by dynamic programming over all subsets of operands."""

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

from tnadapt._planning.cost import Objective, Pair
from tnadapt._planning.programme import Splits, best_left_sides, splits_of
from tnadapt._planning.tensors import Flags, Numbers, Problem, Tensors, Volumes, Words, words_of

__all__: list[str] = []

CACHED = 9  # operands: the splits of so many take half a megabyte


def count_splits(count: int) -> int:
    """Return the number of ways to split the subsets of `count` operands in two, which is what the search looks at."""
    total: int = 3**count - 2 ** (count + 1) + 1
    return total // 2


def exact_pairs(problem: Problem, objective: Objective) -> list[Pair]:
    """Return the cheapest order. The work is `count_splits(count)` times the problem's chunks."""
    count = len(problem.operands)
    left_side = best_left_sides(_subsets(problem), _splits(count), objective)
    pairs: list[Pair] = []

    def build(whole: int) -> int:
        if whole.bit_count() == 1:
            return whole.bit_length() - 1
        left = build(int(left_side[whole]))
        right = build(whole ^ int(left_side[whole]))
        pairs.append((left, right))
        return count + len(pairs) - 1

    build((1 << count) - 1)
    return pairs


def _subsets(problem: Problem) -> Tensors:
    """Number the tensors by the subsets of operands below them, as bit masks."""
    count = len(problem.operands)
    operands = words_of(problem.operands, len(problem.sizes))
    union = np.stack([_over_subsets(word, count) for word in operands])
    answer = words_of([problem.answer], len(problem.sizes))
    kept: Words = union & (union[:, ::-1] | answer)  # read backwards, each subset meets its complement
    kept[:, 1 << np.arange(count)] = operands
    grad, active = (_any_of(flags, count) for flags in (problem.needs_grad, problem.activations))
    return Tensors(Volumes(problem.sizes), kept, grad, active)


def _over_subsets(values: Numbers, count: int) -> Numbers:
    """Return the bitwise or of the chosen values, for every subset of `count` of them."""
    table = np.zeros(1, dtype=np.int64)
    for place in range(count):
        table = np.concatenate([table, table | values[place]])
    return table


def _any_of(flags: tuple[bool, ...], count: int) -> Flags:
    return _over_subsets(np.array(flags, dtype=np.int64), count) > 0


def _splits(count: int) -> Iterable[Splits]:
    """Return all splits at once for few operands; for many, layer by layer, since they would fill the memory."""
    if count < 2:  # noqa: PLR2004  (one operand is its own answer)
        return ()
    return (_splits_of_few(count),) if count <= CACHED else (splits_of([layer]) for layer in _layers(count))


@lru_cache(maxsize=CACHED)
def _splits_of_few(count: int) -> Splits:
    return splits_of(_layers(count))


def _layers(count: int) -> Iterator[tuple[Numbers, Numbers, Numbers]]:
    """Yield the subsets of 2, 3, ... operands, each with the proper parts with its lowest operand, and the rests."""
    everything = np.arange(1 << count, dtype=np.int64)
    bits = np.int64(1) << np.arange(count, dtype=np.int64)
    for chosen in range(2, count + 1):
        wholes = everything[np.bitwise_count(everything) == chosen]
        members = bits[np.nonzero(wholes[:, None] & bits)[1].reshape(-1, chosen)]
        parts = members[:, :1]
        for place in range(1, chosen):
            parts = np.concatenate([parts, parts | members[:, place : place + 1]], axis=1)
        left = parts[:, :-1]
        yield wholes, left, wholes[:, None] ^ left
