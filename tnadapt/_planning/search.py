"""The cheapest order of pairwise contractions, exactly, when some operands need no gradient.

Dynamic programming over subsets of operands. It knows modes, sizes and who needs a gradient; no network, no framework.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from opt_einsum.paths import PathOptimizer, dynamic_programming, greedy, ssa_to_linear

from tnadapt._errors import PlanError

__all__ = ["OBJECTIVES", "Cost", "ExactOrder", "Objective"]

PROGRAMME_LIMIT = 24  # operands, beyond which opt_einsum's programme takes seconds; its greedy order is taken then
EXACT_LIMIT = 14  # operands; 3^14 / 2 splits take half a second
MODE_LIMIT = 62  # bits of a mask
CHUNK = 12  # modes whose volumes are looked up at once
# Flops that weigh as much as one number read or written. The speeds of two CPU cores (70 GFLOP/s, 2.2 G numbers/s) say
# 32; of 1, 4, 8, 16 and 32 tried on VeRA (rank 16, 64) and TeRA (8, 4, 4) at 128 and 1,024 tokens, 8 ran best.
MOVED = 8.0
Modes = tuple[str, ...]
Pair = tuple[int, int]
Masks = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cost:
    """What steps take. Forward and backward in flops, the others in elements.

    `saved` is kept for the backward pass, `peak` the most that is alive at once beside the operands, `moved` what the
    products of both passes read and write.
    """

    forward: int
    backward: int
    saved: int
    peak: int
    moved: int


@dataclass(frozen=True)
class Objective:
    """What is made small: forward flops, plus the other costs by their weights, each weight in flops."""

    name: str
    backward: float = 0.0
    saved: float = 0.0
    moved: float = 0.0

    def of(self, cost: Cost) -> float:
        """The number to make small."""
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
    """Pairs of numbers, step n making number len(inputs) + n; `exact` says whether they are proven the cheapest."""

    pairs: tuple[Pair, ...]
    exact: bool


@dataclass(frozen=True)
class Question:
    """What is contracted: modes of each operand and of the answer, sizes, who needs a gradient, what is an activation.

    An activation is x or what x takes part in; only those count as saved, since factors are kept anyway.
    """

    inputs: tuple[Modes, ...]
    answer: Modes
    sizes: Mapping[str, int]
    needs_grad: tuple[bool, ...]
    activations: tuple[bool, ...]


class _Tables:
    """For every subset of operands, as a bit mask: its modes after summation, its size, its gradient, its cost."""

    def __init__(self, question: Question) -> None:
        self.modes = tuple(dict.fromkeys(mode for modes in (*question.inputs, question.answer) for mode in modes))
        bits = {mode: 1 << place for place, mode in enumerate(self.modes)}
        self.logs = np.array([question.sizes[mode] for mode in self.modes], dtype=np.float64)
        self.operands = np.array(
            [sum(bits[m] for m in dict.fromkeys(modes)) for modes in question.inputs], dtype=np.int64
        )
        count = len(question.inputs)
        self.union = _over_subsets(self.operands, count)
        full = (1 << count) - 1
        needed = self.union[full - np.arange(full + 1)] | np.int64(sum(bits[mode] for mode in question.answer))
        self.kept: Masks = self.union & needed
        for place in range(count):
            self.kept[1 << place] = self.operands[place]
        self.grad = _over_subsets(np.array(question.needs_grad, dtype=np.int64), count) > 0
        self.active = _over_subsets(np.array(question.activations, dtype=np.int64), count) > 0
        self.chunks = [self._volumes(start) for start in range(0, len(self.modes), CHUNK)]
        self.size = self.volume(self.kept)

    def _volumes(self, start: int) -> Floats:
        volumes = np.ones(1)
        for size in self.logs[start : start + CHUNK]:
            volumes = np.concatenate([volumes, volumes * size])
        return volumes

    def volume(self, masks: Masks) -> Floats:
        """Product of the sizes of the modes in each mask."""
        product = np.ones(masks.shape)
        for number, volumes in enumerate(self.chunks):
            product = product * volumes[(masks >> (CHUNK * number)) & (len(volumes) - 1)]
        return product


def _over_subsets(values: Masks, count: int) -> Masks:
    """The bitwise or of the chosen values, for every subset of `count` of them."""
    table = np.zeros(1, dtype=np.int64)
    for place in range(count):
        table = np.concatenate([table, table | values[place]])
    return table


def search(question: Question, objective: Objective) -> Order:
    """The order of least objective, proven up to 14 operands.

    Beyond, operands of equal modes and equal needs are multiplied first, which can never cost flops; if still more than
    14 are left, opt_einsum's dynamic programme gives the order (beyond 24 its greedy one), and it is not proven.
    Raises PlanError for a size below 1, or an order to be proven over more than 62 modes.
    """
    _check(question)
    if len(question.inputs) <= EXACT_LIMIT:
        return Order(tuple(_exact(question, objective)), exact=True)
    merges, numbers, rest = _merge_equal(question)
    exact = len(rest.inputs) <= EXACT_LIMIT
    pairs = _exact(rest, objective) if exact else _dp(rest)
    proven = exact and objective.moved == objective.saved == 0
    return Order((*merges, *_renumber(pairs, numbers, len(question.inputs) + len(merges))), proven)


def _check(question: Question) -> None:
    for mode in dict.fromkeys(mode for modes in (*question.inputs, question.answer) for mode in modes):
        size = question.sizes.get(mode)
        if not isinstance(size, int) or size < 1:
            raise PlanError(f"mode {mode!r}: must have a size of at least 1, got {size!r}.")


def _merge_equal(question: Question) -> tuple[list[Pair], list[int], Question]:
    """Multiply operands of the same modes and the same needs at once.

    Gives the pairs, the number of each operand that is left, and the question about these.
    """
    alike: dict[tuple[frozenset[str], bool, bool], list[int]] = {}
    for number, modes in enumerate(question.inputs):
        key = (frozenset(modes), question.needs_grad[number], question.activations[number])
        alike.setdefault(key, []).append(number)
    pairs: list[Pair] = []
    left: list[tuple[int, int]] = []  # the first operand of a class, and the number of its product
    for numbers in alike.values():
        product = numbers[0]
        for number in numbers[1:]:
            pairs.append((product, number))
            product = len(question.inputs) + len(pairs) - 1
        left.append((numbers[0], product))
    firsts = [first for first, _ in left]
    rest = Question(
        tuple(question.inputs[first] for first in firsts),
        question.answer,
        question.sizes,
        tuple(question.needs_grad[first] for first in firsts),
        tuple(question.activations[first] for first in firsts),
    )
    return pairs, [product for _, product in left], rest


def _exact(question: Question, objective: Objective) -> list[Pair]:
    if len(question.sizes) > MODE_LIMIT:
        raise PlanError(f"an order over at most {MODE_LIMIT} modes can be proven, got {len(question.sizes)}.")
    count = len(question.inputs)
    if count == 1:
        return []
    tables = _Tables(question)
    best = np.zeros(1 << count)
    split = np.zeros(1 << count, dtype=np.int64)
    everything = np.arange(1 << count, dtype=np.int64)
    for chosen in range(2, count + 1):
        wholes = everything[np.bitwise_count(everything) == chosen]
        left = _halves(wholes, chosen, count)
        total = _totals(tables, best, wholes, left, objective)
        winner = np.argmin(total, axis=1)[:, None]
        best[wholes] = np.take_along_axis(total, winner, axis=1)[:, 0]
        split[wholes] = np.take_along_axis(left, winner, axis=1)[:, 0]
    pairs: list[Pair] = []

    def build(whole: int) -> int:
        if whole.bit_count() == 1:
            return whole.bit_length() - 1
        left = build(int(split[whole]))
        right = build(whole ^ int(split[whole]))
        pairs.append((left, right))
        return count + len(pairs) - 1

    build((1 << count) - 1)
    return pairs


def _halves(wholes: Masks, chosen: int, count: int) -> Masks:
    """A row for each subset of `chosen` operands: all its proper parts that hold its lowest operand."""
    bits = np.int64(1) << np.arange(count, dtype=np.int64)
    members = bits[np.nonzero(wholes[:, None] & bits)[1].reshape(-1, chosen)]
    parts = members[:, :1]
    for place in range(1, chosen):
        parts = np.concatenate([parts, parts | members[:, place : place + 1]], axis=1)
    return parts[:, :-1]


def _totals(tables: _Tables, best: Floats, wholes: Masks, left: Masks, objective: Objective) -> Floats:
    """The objective of making each subset from each of its halves and the rest."""
    right = wholes[:, None] ^ left
    both = tables.kept[left] | tables.kept[right]
    forward = tables.volume(both) * np.where(both == tables.kept[wholes][:, None], 1.0, 2.0)
    grad_left, grad_right = tables.grad[left], tables.grad[right]
    products = grad_left.astype(float) + grad_right  # of the backward pass
    total: Floats = best[left] + best[right] + forward * (1.0 + objective.backward * products)
    if objective.saved:
        keep_left = tables.size[left] * (grad_right & tables.active[left])
        keep_right = tables.size[right] * (grad_left & tables.active[right])
        total += objective.saved * (keep_left + keep_right)
    if objective.moved:
        moved = tables.size[left] + tables.size[right] + tables.size[wholes][:, None]
        total += objective.moved * moved * (1.0 + products)
    return total


def _dp(question: Question) -> list[Pair]:
    search = dynamic_programming if len(question.inputs) <= PROGRAMME_LIMIT else greedy
    path = search([frozenset(modes) for modes in question.inputs], frozenset(question.answer), dict(question.sizes))
    numbers = list(range(len(question.inputs)))
    pairs: list[Pair] = []
    for left, right in path:
        pair = (numbers[left], numbers[right])
        numbers = [number for place, number in enumerate(numbers) if place not in (left, right)]
        pairs.append(pair)
        numbers.append(len(question.inputs) + len(pairs) - 1)
    return pairs


def _renumber(pairs: Sequence[Pair], numbers: Sequence[int], known: int) -> list[Pair]:
    """Pairs over operands 0, 1, ... as pairs over `numbers`, results counted on from `known`."""
    table = [*numbers, *range(known, known + len(pairs))]
    return [(table[left], table[right]) for left, right in pairs]


def measure(question: Question, pairs: Sequence[Pair]) -> tuple[tuple[Modes, ...], tuple[Cost, ...], Cost]:
    """Modes and cost of each step of an order, and the total cost, as exact integers."""
    modes, grad, active = list(question.inputs), list(question.needs_grad), list(question.activations)
    waiting = set(range(len(modes)))
    results: list[Modes] = []
    steps: list[Cost] = []
    alive = peak = 0
    for left, right in pairs:
        waiting -= {left, right}
        needed = {*question.answer, *(mode for number in waiting for mode in modes[number])}
        union = tuple(dict.fromkeys((*modes[left], *modes[right])))
        result = tuple(mode for mode in union if mode in needed)
        forward = _size(question, union) * (1 if len(result) == len(union) else 2)
        sizes = [_size(question, modes[side]) for side in (left, right)]
        keeps = (grad[right] and active[left], grad[left] and active[right])
        made = _size(question, result)
        peak = max(peak, alive + made)
        alive += made - sum(
            size for side, size in zip((left, right), sizes, strict=True) if side >= len(question.inputs)
        )
        saved = sum(size for size, keep in zip(sizes, keeps, strict=True) if keep)
        products = grad[left] + grad[right]
        steps.append(Cost(forward, forward * products, saved, peak, (sum(sizes) + made) * (1 + products)))
        results.append(result)
        waiting.add(len(modes))
        modes.append(result)
        grad.append(grad[left] or grad[right])
        active.append(active[left] or active[right])
    total = Cost(
        sum(step.forward for step in steps),
        sum(step.backward for step in steps),
        sum(step.saved for step in steps),
        peak,
        sum(step.moved for step in steps),
    )
    return tuple(results), tuple(steps), total


def _size(question: Question, modes: Collection[str]) -> int:
    return math.prod(question.sizes[mode] for mode in modes)


class ExactOrder(PathOptimizer):  # type: ignore[misc]  # opt_einsum carries no types
    """The same search as an optimizer of opt_einsum: `contract_path(..., optimize=ExactOrder())`.

    `needs_grad` says, for each operand in order, whether it needs a gradient; without it all do. With the objective
    "forward" the result is the order of least flops, also where a mode is in three or more operands.
    """

    def __init__(self, *, needs_grad: Sequence[bool] | None = None, objective: str = "flops") -> None:
        """Raises PlanError for an objective that is not known."""
        super().__init__()
        if objective not in OBJECTIVES:
            raise PlanError(f"objective {objective!r} is not known; known: {', '.join(OBJECTIVES)}.")
        self.needs_grad = needs_grad
        self.objective = OBJECTIVES[objective]

    def __call__(
        self, inputs: list[Any], output: Any, size_dict: dict[str, int], memory_limit: int | None = None
    ) -> list[tuple[int, ...]]:
        """The path for opt_einsum. Raises PlanError for a size below 1 or a mask of another length."""
        grad = tuple(self.needs_grad) if self.needs_grad is not None else (True,) * len(inputs)
        if len(grad) != len(inputs):
            raise PlanError(f"needs_grad: one for each of {len(inputs)} operands, got {len(grad)}.")
        modes = tuple(tuple(sorted(operand)) for operand in inputs)
        sizes = {str(mode): int(size) for mode, size in size_dict.items()}
        question = Question(modes, tuple(sorted(output)), sizes, grad, grad)
        return [tuple(pair) for pair in ssa_to_linear(search(question, self.objective).pairs)]
