"""The search: nothing beats it up to 14 operands, neither all trees nor opt_einsum, whatever needs a gradient."""

import opt_einsum
import pytest
from hypothesis import given

from tests.core.planning.networks import (
    all_trees,
    cost,
    dense,
    matrices,
    numbered,
    pairs_by_opt_einsum,
    questions,
    with_equal_operands,
)
from tnadapt import PlanError
from tnadapt._planning import Question, measure, search
from tnadapt._planning.cost import Order
from tnadapt.binding import FIXED, OBJECTIVES, ExactOrder


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@given(question=questions())
def test_no_tree_is_cheaper(objective, question):
    found = search(question, objective)
    count = len(question.inputs)
    best = min(cost(question, numbered(tree, count), objective) for tree in all_trees(list(range(count))))
    assert found.exact
    assert cost(question, found.pairs, objective) <= best * (1 + 1e-12)


def weigh_apart(question, pairs, objective):
    """The objective of an order, where steps that no activation takes part in count less."""
    active = list(question.activations)
    total = 0.0
    for (left, right), step in zip(pairs, measure(question, pairs)[1], strict=True):
        active.append(active[left] or active[right])
        total += (objective.of(step) + objective.step) * (1.0 if active[-1] else objective.apart)
    return total


@given(question=questions())
def test_no_tree_is_cheaper_where_factors_stay_as_they_are(question):
    found, count = search(question, FIXED["cpu"]), len(question.inputs)
    best = min(weigh_apart(question, numbered(tree, count), FIXED["cpu"]) for tree in all_trees(list(range(count))))
    assert weigh_apart(question, found.pairs, FIXED["cpu"]) <= best * (1 + 1e-12)


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


def test_a_long_chain_is_not_proven():
    assert search(matrices(14), OBJECTIVES["flops"]).exact
    long = search(matrices(20), OBJECTIVES["flops"])
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
    with pytest.raises(PlanError, match="mode 'b': expected an integer size of at least 1, got"):
        search(
            Question((("a", "b"), ("b",)), ("a",), {"a": 2, "b": size}, (True, True), (False, False)),
            OBJECTIVES["flops"],
        )


def test_the_optimizer_refuses_what_it_does_not_know():
    with pytest.raises(PlanError, match="expected an objective out of forward, flops, training, memory, got 'beauty'"):
        ExactOrder(objective="beauty")
    with pytest.raises(PlanError, match="expected needs_grad to have one entry for each of 3 operands, got 1"):
        opt_einsum.contract_path(
            "ab,bc,cd->ad", (2, 3), (3, 4), (4, 5), shapes=True, optimize=ExactOrder(needs_grad=[True])
        )


def test_seventy_modes_that_nothing_tells_apart_are_one():
    modes = tuple(f"m{number}" for number in range(70))
    wide = Question((modes, modes), (), dict.fromkeys(modes, 1), (True, True), (False, False))
    assert search(wide, OBJECTIVES["flops"]) == Order(((0, 1),), exact=True)


def test_the_exact_search_reaches_less_far_over_many_modes():
    few, many = dense(12, seed=0, modes=600), dense(12, seed=0, modes=700)
    assert search(few, OBJECTIVES["training"]).exact
    assert not search(many, OBJECTIVES["training"]).exact


def test_volumes_beyond_a_float_do_no_harm():
    huge = dense(9, seed=0, modes=600, sizes=(2**20,))
    found = search(huge, OBJECTIVES["memory"])
    assert found.exact
    assert len(found.pairs) == 8


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_greedy_order_is_not_cheaper_where_equal_operands_are_merged(objective):
    for seed in range(20):
        question = with_equal_operands(18, seed)
        found, greedy = search(question, objective).pairs, pairs_by_opt_einsum(question)
        assert cost(question, found, objective) <= cost(question, greedy, objective) * (1 + 1e-9)


def test_many_operands_get_an_order_that_is_not_proven():
    order = search(matrices(70), OBJECTIVES["flops"])
    assert not order.exact
    assert len(order.pairs) == len(matrices(70).inputs) - 1


def test_the_mask_changes_the_order():
    """LoRA-XS, frozen A and B around a trained R: folding R into B makes B's side need a gradient over all tokens."""
    shapes = ((4096, 64), (64, 8), (8, 8), (64, 8))
    flops = {}
    for name, mask in (("all", None), ("real", [True, False, True, False])):
        order = ExactOrder(needs_grad=mask)
        path = opt_einsum.contract_path("ti,ir,rs,os->to", *shapes, shapes=True, optimize=order)[0]
        flops[name] = path
    assert flops["all"] != flops["real"]
