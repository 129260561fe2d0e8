"""The search for a contraction order: proven where the exact search reaches, a good one beyond."""

from collections.abc import Sequence
from typing import Any

from opt_einsum.paths import PathOptimizer, ssa_to_linear

from tnadapt._errors import PlanError
from tnadapt._planning.cost import OBJECTIVES, Objective, Order, Pair, Question, check_sizes
from tnadapt._planning.descent import Work, descend
from tnadapt._planning.exact import count_splits, exact_pairs
from tnadapt._planning.tensors import Problem, problem_of

__all__ = ["ExactOrder"]

EXACT_LIMIT = 14  # operands; their 2.4 million splits take 0.2 s
EXACT_WORK = 6 * count_splits(EXACT_LIMIT)  # splits times look-ups: 14 operands over 72 modes, 13 over 216, and so on


def search(question: Question, objective: Objective) -> Order:
    """Return the order of least objective, proven up to 14 operands.

    With more operands, those of equal modes and equal needs are multiplied first, which never costs more flops. If
    more than 14 are then left, or they have hundreds of modes that no cost treats alike, the order is not proven to be
    the cheapest. The work is bounded: 40 operands take about 0.3 s.

    Raises PlanError for a size that is missing or not a positive integer.
    """
    check_sizes(question)
    problem = problem_of(question)
    if _is_within_reach(problem):
        return Order(tuple(exact_pairs(problem, objective)), exact=True)
    merges, numbers, rest = _merge_equal(question)
    reduced = problem_of(rest)
    exact = _is_within_reach(reduced)
    pairs = exact_pairs(reduced, objective) if exact else descend(reduced, objective, Work())
    proven = exact and objective.moved == objective.saved == 0  # merging does not know what is saved and moved
    return Order((*merges, *_renumber(pairs, numbers, len(question.inputs) + len(merges))), proven)


def _is_within_reach(problem: Problem) -> bool:
    count = len(problem.operands)
    return count <= EXACT_LIMIT and count_splits(count) * problem.chunks <= EXACT_WORK


def _merge_equal(question: Question) -> tuple[list[Pair], list[int], Question]:
    """Multiply operands of the same modes and the same needs with each other.

    Returns the pairs, the number of each operand that is left, and the question about these.
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
    return pairs, [product for _, product in left], question.part([first for first, _ in left])


def _renumber(pairs: Sequence[Pair], numbers: Sequence[int], known: int) -> list[Pair]:
    """Return pairs over operands 0, 1, ... as pairs over `numbers`, with results counted on from `known`."""
    table = [*numbers, *range(known, known + len(pairs))]
    return [(table[left], table[right]) for left, right in pairs]


class ExactOrder(PathOptimizer):  # type: ignore[misc]  # opt_einsum carries no types
    """The same search as an optimizer of opt_einsum: `contract_path(..., optimize=ExactOrder())`.

    `needs_grad` says, for each operand in order, whether it needs a gradient; by default all do. With the objective
    "forward" the result is the order of least flops, also where three or more operands share a mode. It is exact up
    to 14 operands.
    """

    def __init__(self, *, needs_grad: Sequence[bool] | None = None, objective: str = "flops") -> None:
        """Raise PlanError for an unknown objective."""
        super().__init__()
        if objective not in OBJECTIVES:
            raise PlanError(
                f"ExactOrder: expected an objective out of {', '.join(OBJECTIVES)}, got {objective!r}.\n"
                f"Pass one of these names."
            )
        self.needs_grad = needs_grad
        self.objective = OBJECTIVES[objective]

    def __call__(
        self, inputs: list[Any], output: Any, size_dict: dict[str, int], memory_limit: int | None = None
    ) -> list[tuple[int, ...]]:
        """Return the path for opt_einsum. Raises PlanError for a size below 1 or a mask of another length."""
        grad = tuple(self.needs_grad) if self.needs_grad is not None else (True,) * len(inputs)
        if len(grad) != len(inputs):
            raise PlanError(
                f"ExactOrder: expected needs_grad to have one entry for each of {len(inputs)} operands, "
                f"got {len(grad)}.\nPass one bool for each operand, in order."
            )
        modes = tuple(tuple(sorted(operand)) for operand in inputs)
        sizes = {str(mode): int(size) for mode, size in size_dict.items()}
        question = Question(modes, tuple(sorted(output)), sizes, grad, grad)
        return [tuple(pair) for pair in ssa_to_linear(search(question, self.objective).pairs)]
