"""The exact search: nothing beats it, neither all trees nor opt_einsum, whatever needs a gradient."""

import opt_einsum
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnadapt import PlanError
from tnadapt._planning.search import Question, measure, search
from tnadapt.binding import OBJECTIVES, ExactOrder

LETTERS = "abcdef"


@st.composite
def questions(draw, most=5):
    """Random networks with hyperedges, scalars, outer products and random masks."""
    inputs = draw(st.lists(st.sets(st.sampled_from(LETTERS), max_size=4), min_size=1, max_size=most))
    carried = sorted(set().union(*inputs))
    often = {mode: sum(mode in modes for modes in inputs) for mode in carried}
    answer = tuple(mode for mode in carried if often[mode] == 1 or draw(st.booleans()))
    sizes = {mode: draw(st.sampled_from([1, 2, 3, 5, 8, 20])) for mode in carried}
    flags = st.lists(st.booleans(), min_size=len(inputs), max_size=len(inputs)).map(tuple)
    return Question(tuple(tuple(sorted(modes)) for modes in inputs), answer, sizes, draw(flags), draw(flags))


def trees(numbers):
    """Every binary tree over operands."""
    if len(numbers) == 1:
        yield numbers[0]
        return
    first, *others = numbers
    for mask in range(2 ** len(others) - 1):
        left = [first, *(number for place, number in enumerate(others) if mask >> place & 1)]
        right = [number for place, number in enumerate(others) if not mask >> place & 1]
        yield from ((one, two) for one in trees(left) for two in trees(right))


def pairs_of(tree, known):
    pairs = []

    def number(node):
        if isinstance(node, int):
            return node
        pair = (number(node[0]), number(node[1]))
        pairs.append(pair)
        return known + len(pairs) - 1

    number(tree)
    return pairs


def cost(question, pairs, objective):
    return objective.of(measure(question, pairs)[2])


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@given(question=questions())
def test_no_tree_is_cheaper(objective, question):
    found = search(question, objective)
    count = len(question.inputs)
    best = min(cost(question, pairs_of(tree, count), objective) for tree in trees(list(range(count))))
    assert found.exact
    assert cost(question, found.pairs, objective) <= best * (1 + 1e-12)


def flops_of_opt_einsum(question, optimize):
    words = ["".join(modes) for modes in (*question.inputs, question.answer)]
    shapes = [tuple(question.sizes[mode] for mode in modes) for modes in question.inputs]
    equation = f"{','.join(words[:-1])}->{words[-1]}"
    return opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=optimize)


@given(question=questions(most=6).filter(lambda q: len(q.inputs) > 1))
def test_opt_einsum_is_never_cheaper_and_counts_our_path_alike(question):
    path, info = flops_of_opt_einsum(question, ExactOrder(objective="forward"))
    found = search(question, OBJECTIVES["forward"])
    assert info.opt_cost == measure(question, found.pairs)[2].forward
    for other in ("optimal", "dp"):
        assert info.opt_cost <= flops_of_opt_einsum(question, other)[1].opt_cost
    assert len(path) == len(question.inputs) - 1


@given(question=questions())
def test_when_all_is_trained_the_forward_order_is_the_training_order(question):
    count = len(question.inputs)
    all_trained = Question(question.inputs, question.answer, question.sizes, (True,) * count, question.activations)
    forward, training = (search(all_trained, OBJECTIVES[name]) for name in ("forward", "flops"))
    flops = OBJECTIVES["flops"]
    assert cost(all_trained, forward.pairs, flops) == cost(all_trained, training.pairs, flops)
    whole = measure(all_trained, training.pairs)[2]
    assert whole.backward == 2 * whole.forward


def chain(count, size=3):
    inputs = tuple((f"m{n}", f"m{n + 1}") for n in range(count))
    sizes = {f"m{n}": size + n % 4 for n in range(count + 1)}
    return Question(inputs, ("m0", f"m{count}"), sizes, (True,) * count, (False,) * count)


def test_a_long_chain_falls_back_and_says_so():
    assert search(chain(14), OBJECTIVES["flops"]).exact
    long = search(chain(20), OBJECTIVES["flops"])
    assert not long.exact
    assert sorted(number for pair in long.pairs for number in pair) == list(range(2 * 20 - 2))


def test_many_equal_vectors_are_multiplied_first_and_the_rest_is_exact():
    """Twenty vectors on one mode are one operand after merging: 21 operands become 3."""
    inputs = (("a", "r"), ("r", "b"), *[("r",)] * 19)
    question = Question(inputs, ("a", "b"), {"a": 4, "b": 5, "r": 3}, (True,) * 21, (False,) * 21)
    found = search(question, OBJECTIVES["flops"])
    assert found.exact
    assert measure(question, found.pairs)[2].forward == 18 * 3 + 4 * 3 + 2 * 4 * 3 * 5


@pytest.mark.parametrize("size", [-1, 0, 2.0])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(PlanError, match="must have a size of at least 1"):
        search(
            Question((("a", "b"), ("b",)), ("a",), {"a": 2, "b": size}, (True, True), (False, False)),
            OBJECTIVES["flops"],
        )


def test_the_optimizer_refuses_what_it_does_not_know():
    with pytest.raises(PlanError, match="objective 'beauty' is not known; known: forward, flops"):
        ExactOrder(objective="beauty")
    with pytest.raises(PlanError, match="one for each of 3 operands, got 1"):
        opt_einsum.contract_path(
            "ab,bc,cd->ad", (2, 3), (3, 4), (4, 5), shapes=True, optimize=ExactOrder(needs_grad=[True])
        )
    modes = tuple(f"m{number}" for number in range(70))
    wide = Question((modes, modes), (), dict.fromkeys(modes, 1), (True, True), (False, False))
    with pytest.raises(PlanError, match="at most 62 modes"):
        search(wide, OBJECTIVES["flops"])


def test_many_operands_get_an_order_that_is_not_proven():
    order = search(chain(70), OBJECTIVES["flops"])
    assert not order.exact
    assert len(order.pairs) == len(chain(70).inputs) - 1


def test_the_mask_changes_the_order():
    """LoRA-XS, frozen A and B around a trained R: folding R into B makes B's side need a gradient over all tokens."""
    shapes = ((4096, 64), (64, 8), (8, 8), (64, 8))
    flops = {}
    for name, mask in (("all", None), ("real", [True, False, True, False])):
        order = ExactOrder(needs_grad=mask)
        path = opt_einsum.contract_path("ti,ir,rs,os->to", *shapes, shapes=True, optimize=order)[0]
        flops[name] = path
    assert flops["all"] != flops["real"]
