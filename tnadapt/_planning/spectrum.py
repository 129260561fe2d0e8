"""Orders that convolve: the operands that a cyclic pattern joins meet in the frequency domain, without the pattern."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tnadapt._language import Network
from tnadapt._planning.cost import Convolution, Line, Modes, Objective, Order, Question, lines_of
from tnadapt._planning.search import search

__all__: list[str] = []

SHORTEST = 8  # a shorter transform takes longer than its flops say
LEGS = 3  # modes of a pattern: the sum of indices, and two summands
SHARED = "(index)"  # the three modes of a pattern as one


def amount_of_cyclic(network: Network, node: str) -> float:
    """Return the nonzero entry of a node that is a frozen cyclic pattern of three inner modes of one size, else 0."""
    factor, modes = network.factors[network.nodes[node].factor], network.local_modes(node)
    is_pattern = factor.init.kind == "cyclic" and not (factor.trainable or factor.map)
    if not is_pattern or len(modes) != LEGS or modes != network.nodes[node].modes:
        return 0.0
    if len({network.sizes[mode] for mode in modes}) > 1:
        return 0.0
    return float(np.float32(factor.init.amount / math.sqrt(network.volume(factor.init.fan))))  # as it is drawn


def convolved_orders(question: Question, objective: Objective) -> Iterator[Order]:
    """Yield, for each cyclic operand that can be replaced by a convolution, a good order of the other operands.

    The three modes of the pattern become one mode that the others share. An order of these is searched as usual; it
    counts as proven if they are two, which have only one.
    """
    for pattern, amount in enumerate(question.cyclic):
        if amount and _can_be_convolved(question, pattern):
            others = [number for number in range(len(question.inputs)) if number != pattern]
            order = search(_joined(question, pattern).part(others), objective)
            table = [*others, *range(len(question.inputs), len(question.inputs) + len(order.pairs))]
            pairs = tuple((table[left], table[right]) for left, right in order.pairs)
            yield Order(pairs, exact=len(others) == LEGS - 1, pattern=pattern)


def lines_of_order(question: Question, order: Order) -> list[Line]:
    """Return the steps of an order, with a convolution where two modes of its pattern meet."""
    if order.pattern is None:
        return lines_of(question, order.pairs)
    legs = question.inputs[order.pattern]
    held = [next((mode for mode in modes if mode in legs), "") for modes in question.inputs]  # by each operand
    lines: list[Line] = []
    for line in lines_of(_joined(question, order.pattern), order.pairs):
        left, right = held[line.left], held[line.right]
        how, mode = None, left or right
        if left and right and left != right:
            mode = next(leg for leg in legs if leg not in (left, right))
            how = _convolution(question, order.pattern, left, right, mode)
        held.append(mode if SHARED in line.modes else "")
        lines.append(replace(line, modes=tuple(mode if one == SHARED else one for one in line.modes), convolution=how))
    return lines


def _can_be_convolved(question: Question, pattern: int) -> bool:
    """Return whether each mode of a pattern is in one other operand, at most one of them only in the answer instead.

    The operands must differ: a pattern that joins two modes of one operand sums its diagonals.
    """
    legs = question.inputs[pattern]
    size = question.sizes[legs[0]]
    places = [
        [
            number
            for number, modes in enumerate((*question.inputs, question.answer))
            if leg in modes and number != pattern
        ]
        for leg in legs
    ]
    return size >= SHORTEST and all(len(some) == 1 for some in places) and len({some[0] for some in places}) == LEGS


def _joined(question: Question, pattern: int) -> Question:
    """Return the question with the modes of a pattern as one, which the pattern itself no longer has."""
    legs = question.inputs[pattern]

    def renamed(modes: Modes) -> Modes:
        return tuple(SHARED if mode in legs else mode for mode in modes)

    inputs = [renamed(modes) if number != pattern else () for number, modes in enumerate(question.inputs)]
    sizes = {**question.sizes, SHARED: question.sizes[legs[0]]}
    return replace(question, inputs=tuple(inputs), answer=renamed(question.answer), sizes=sizes)


def _convolution(question: Question, pattern: int, left: str, right: str, made: str) -> Convolution:
    total = question.inputs[pattern][0]  # the mode whose index is the sum of the others
    size, amount = question.sizes[total], question.cyclic[pattern]
    return Convolution(
        pattern, left, right, made, size, amount, "right" if left == total else "left" if right == total else ""
    )
