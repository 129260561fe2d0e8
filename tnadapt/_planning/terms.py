"""Orders for a sum of contractions: the cheapest for each term, where parts that terms have in common are made once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tnadapt._language import Network
from tnadapt._planning.cost import Line, Modes, Objective, Order, Question, measure_lines
from tnadapt._planning.search import search
from tnadapt._planning.spectrum import convolved_orders, lines_of_order

__all__: list[str] = []


@dataclass(frozen=True)
class Program:
    """Steps whose results are summed: `results` has the number of each term's result. `exact` is as for an order."""

    lines: tuple[Line, ...]
    results: tuple[int, ...]
    exact: bool


@dataclass(frozen=True)
class _Made:
    """An intermediate: the operands below it, and its modes as a set."""

    leaves: frozenset[int]
    modes: frozenset[str]


@dataclass(frozen=True)
class _Way:
    """One way to make a term: the steps that it adds, what they make, the number of the result, and the order."""

    lines: list[Line]
    made: dict[_Made, int]
    result: int
    order: Order


def search_terms(
    question: Question, terms: Sequence[Sequence[int]], objective: Objective, mirrors: Mapping[int, int]
) -> Program:
    """Return steps for the sum of several contractions of some operands each.

    Each order is the cheapest for its term alone, or one that begins at an intermediate of the terms before it, if that
    is cheaper. One cyclic operand of a term may be replaced by a convolution, where that is cheaper. `mirrors` maps the
    number of a term to that of an earlier one with operands of the same modes, whose order it takes: the two then
    cancel exactly where their values are equal.
    """
    made = _Steps(question, objective)
    results: list[int] = []
    orders: list[Order] = []
    for number, term in enumerate(terms):
        if number in mirrors:
            ways = [made.way(term, None, orders[mirrors[number]])]
        else:
            begins = (None, *(made.usable(term) if number not in mirrors.values() else ()))
            ways = [way for begin in begins for way in made.ways(term, begin)]
        way = min(ways, key=made.weigh)
        made.take(way)
        results.append(way.result)
        orders.append(way.order)
    return Program(tuple(made.lines), tuple(results), all(order.exact for order in orders))


class _Steps:
    """The steps of the terms so far."""

    def __init__(self, question: Question, objective: Objective) -> None:
        self.question, self.objective = question, objective
        self.lines: list[Line] = []
        self.known: dict[_Made, int] = {}

    def take(self, way: _Way) -> None:
        self.lines += way.lines
        self.known |= way.made

    def weigh(self, way: _Way) -> float:
        return self.objective.of(measure_lines(self.question, [*self.lines, *way.lines])[1])

    def usable(self, term: Sequence[int]) -> list[_Made]:
        """Return the intermediates that are a part of a term, with the modes that the rest of the term needs."""
        inputs, found = self.question.inputs, []
        for made in self.known:
            rest = {*term} - made.leaves
            inside = {mode for number in made.leaves for mode in inputs[number]}
            needed = {*self.question.answer, *(mode for number in rest for mode in inputs[number])}
            if made.leaves < {*term} and made.modes == inside & needed:
                found.append(made)
        return found

    def ways(self, term: Sequence[int], begin: _Made | None) -> list[_Way]:
        """Return the cheapest way to make a term by pairs alone, and good ones with a convolution.

        `begin` is an intermediate that replaces its operands.
        """
        part = self._part(*self._operands(term, begin))
        orders = [search(part, self.objective) if len(part.inputs) > 1 else Order((), exact=True)]
        orders += convolved_orders(part, self.objective)
        exact = all(order.exact for order in orders)
        return [self.way(term, begin, replace(order, exact=exact)) for order in orders]

    def way(self, term: Sequence[int], begin: _Made | None, order: Order) -> _Way:
        """Return the way to make a term by an order of its operands, or of those that `begin` leaves."""
        numbers, below = self._operands(term, begin)
        operands, known = [*numbers], len(self.question.inputs) + len(self.lines)
        lines: list[Line] = []
        new: dict[_Made, int] = {}
        for line in lines_of_order(self._part(numbers, below), order):
            how, leaves = line.convolution, below[line.left] | below[line.right]
            if how:
                leaves |= below[how.pattern]
                how = replace(how, pattern=operands[how.pattern])
            made = _Made(leaves, frozenset(line.modes))
            if made not in self.known and made not in new:
                new[made] = known + len(lines)
                lines.append(Line(numbers[line.left], numbers[line.right], line.modes, how))
            numbers.append(self.known.get(made, new.get(made, 0)))
            below.append(made.leaves)
        return _Way(lines, new, numbers[-1], order)

    def _operands(self, term: Sequence[int], begin: _Made | None) -> tuple[list[int], list[frozenset[int]]]:
        """Return the numbers that a way begins with, and the operands below each."""
        numbers = [number for number in term if begin is None or number not in begin.leaves]
        below = [frozenset({number}) for number in numbers]
        return (numbers, below) if begin is None else ([*numbers, self.known[begin]], [*below, begin.leaves])

    def _part(self, numbers: Sequence[int], below: Sequence[frozenset[int]]) -> Question:
        """Return the question about these operands and intermediates."""
        question = self.question
        known: list[Modes] = [*question.inputs, *(line.modes for line in self.lines)]
        amounts = (*question.cyclic, *(0.0 for _ in self.lines)) if question.cyclic else ()
        return replace(
            question,
            inputs=tuple(known[number] for number in numbers),
            needs_grad=tuple(any(question.needs_grad[leaf] for leaf in under) for under in below),
            activations=tuple(any(question.activations[leaf] for leaf in under) for under in below),
            cyclic=tuple(amounts[number] for number in numbers if amounts),
        )


def paired(network: Network) -> list[tuple[int, list[str], int]]:
    """Return the sign and the nodes of each term, and the number of the first term that has the same factors.

    Terms of the same factors, such as one and that of the starting values, follow each other: they cancel exactly where
    they are equal, which a sum in another order may not.
    """
    alike: dict[object, list[tuple[int, list[str]]]] = {}
    for term in network.terms:
        nodes = sorted((network.nodes[name], name) for name in term.nodes)
        key = tuple((node.factor, node.modes) for node, _ in nodes)
        alike.setdefault(key, []).append((term.sign, [name for _, name in nodes]))
    found: list[tuple[int, list[str], int]] = []
    for group in alike.values():
        root = len(found)
        found += [(sign, names, root) for sign, names in group]
    return found
