"""Sums of terms: common parts are made once, a mirrored term takes the order of the first, and sharing never costs."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.planning.networks import all_trees, cost, numbered, tree_of
from tests.thorough import IS_THOROUGH
from tnadapt import AdapterSpec, Site, families, frozen, grid, plan, same, trainable, zeros
from tnadapt._planning import Question, search
from tnadapt._planning.cost import measure_lines
from tnadapt._planning.plan import X
from tnadapt._planning.terms import search_terms
from tnadapt.binding import OBJECTIVES
from tnadapt.testing import dense, networks, random_params
from tnadapt.testing._oracle import local, run_plan

OBJECTIVE = OBJECTIVES["training"]
T = "(token)"
SIZES = {T: 32, "in": 16, "out": 16, "r": 2, "q": 2}


def question(*inputs, grads=None, tokens=32, **others):
    """A question whose operand 0 is x; all need a gradient, unless it is said."""
    count, answer, sizes = len(inputs) + 1, (T, "out"), SIZES | {T: tokens} | others
    return Question(
        ((T, "in"), *inputs), answer, sizes, grads or (True,) * count, tuple(number == 0 for number in range(count))
    )


def apart(asked, term, objective=OBJECTIVE):
    """The cost of a term by itself."""
    part = asked.part(term)
    pairs = search(part, objective).pairs if len(term) > 1 else ()
    return cost(part, pairs, objective)


def pairs_of(program):
    return [(line.left, line.right) for line in program.lines]


A, B, D = ("r", "in"), ("out", "r"), ("out", "r")


def test_terms_that_begin_alike_make_the_beginning_once():
    """B A and D A: x A is one step, which both read."""
    program = search_terms(question(A, B, D), [(0, 1, 2), (0, 1, 3)], OBJECTIVE, {})
    assert pairs_of(program) == [(0, 1), (4, 2), (4, 3)]
    assert (program.results, program.exact) == ((5, 6), True)
    assert [line.modes for line in program.lines] == [(T, "r"), (T, "out"), (T, "out")]


def test_a_term_that_is_a_part_of_another_is_made_once():
    """B A and B A G, where G acts on the result: the second begins at the result of the first."""
    program = search_terms(question(A, B, ("out",), tokens=1), [(0, 1, 2), (0, 1, 2, 3)], OBJECTIVE, {})
    assert pairs_of(program) in ([(0, 1), (4, 2), (5, 3)], [(0, 1), (4, 2), (3, 5)])
    assert program.results == (5, 6)


GATED = (T, "r", "out")  # as large as the first term needs x A to be made first


def test_a_term_leaves_its_own_order_to_begin_at_what_is_there():
    """Alone, the second would multiply its two factors first: 512 + 1,024 products. From x A it takes 1,024."""
    asked = question(A, GATED, D, tokens=32, r=16, out=2, **{"in": 16})
    forward = OBJECTIVES["forward"]
    assert pairs_of(search_terms(asked, [(0, 1, 3)], forward, {})) == [(1, 3), (0, 4)]
    assert pairs_of(search_terms(asked, [(0, 1, 2), (0, 1, 3)], forward, {})) == [(0, 1), (4, 2), (3, 4)]


def test_a_term_keeps_its_own_order_if_that_is_cheaper_than_what_is_there():
    """x A is large here: from it, the second term would take 4,096 products, and by itself 256 + 128."""
    asked = question(A, GATED, D, tokens=32, r=64, out=2, **{"in": 2})
    forward = OBJECTIVES["forward"]
    assert pairs_of(search_terms(asked, [(0, 1, 2), (0, 1, 3)], forward, {})) == [(0, 1), (4, 2), (1, 3), (0, 6)]


def test_a_part_of_another_is_left_if_it_is_dearer_to_go_on_from_it():
    """At many tokens G is multiplied into B, and only x A is common."""
    program = search_terms(question(A, B, ("out",), tokens=1024), [(0, 1, 2), (0, 1, 2, 3)], OBJECTIVE, {})
    assert pairs_of(program)[:2] == [(0, 1), (4, 2)]
    assert {*pairs_of(program)[2]} == {2, 3}
    assert {*pairs_of(program)[3]} == {4, 6}


def test_a_term_that_occurs_twice_is_made_once():
    program = search_terms(question(A, B), [(0, 1, 2), (0, 1, 2)], OBJECTIVE, {1: 0})
    assert (pairs_of(program), program.results) == ([(0, 1), (3, 2)], (4, 4))


def test_terms_without_a_common_part_are_as_they_are_alone():
    program = search_terms(question(A, B, ("q", "in"), ("out", "q")), [(0, 1, 2), (0, 3, 4)], OBJECTIVE, {})
    assert pairs_of(program) == [(0, 1), (5, 2), (0, 3), (7, 4)]
    assert program.results == (6, 8)


def test_a_part_is_common_only_if_both_terms_need_the_same_modes_of_it():
    """In the second term G carries the bond r, so that x A B, summed over r, cannot be its beginning; x A can."""
    program = search_terms(question(A, B, ("out", "r")), [(0, 1, 2), (0, 1, 2, 3)], OBJECTIVE, {})
    leaves = [frozenset({number}) for number in range(4)]
    for line in program.lines:
        leaves.append(leaves[line.left] | leaves[line.right])
    modes = {below: {*line.modes} for below, line in zip(leaves[4:], program.lines, strict=True)}
    assert modes[frozenset({0, 1, 2})] == {T, "out"}
    last = program.lines[program.results[1] - 4]
    assert frozenset({0, 1, 2}) not in (leaves[last.left], leaves[last.right])


def measured(asked, program):
    return measure_lines(asked, program.lines, program.results)[1]


def test_a_mirrored_term_takes_the_order_of_the_first():
    """The start of a factor needs no gradient, so that alone its term might take another order; it must not."""
    grads = (True, True, True, False, False)
    asked = question(A, B, A, B, grads=grads)
    program = search_terms(asked, [(0, 1, 2), (0, 3, 4)], OBJECTIVE, {1: 0})
    assert pairs_of(program) == [(0, 1), (5, 2), (0, 3), (7, 4)]


@pytest.mark.parametrize("tokens", [1, 16, 1024])
@pytest.mark.parametrize("name", ["pissa", "dota", "quanta", "lora_pt", "tcurlora"])
def test_a_centered_family_cancels_to_the_last_bit_at_its_start(name, tokens):
    spec = getattr(families, name)()
    sites = grid(layers=2, kinds={"q": (16, 16)})
    adapter = spec.bind(sites, rank=2, seed=3)
    network = adapter.networks[0]
    made = plan(network, tokens=tokens)
    random = np.random.default_rng(0)
    shapes = {name: tuple(network.sizes[mode] for mode in network.local_modes(name)) for name in network.nodes}
    drawn = {node.factor: random.standard_normal(shapes[name]) for name, node in network.nodes.items()}
    arrays = {name: drawn[node.factor] for name, node in network.nodes.items()}
    arrays[X] = random.standard_normal([made.size(mode) for mode in made.inputs[0]])
    assert (run_plan(made, arrays)[0] == 0).all()


def trees(asked, term):
    """Every order of one term, as pairs of its operands."""
    return [numbered(tree, len(term)) for tree in all_trees(range(len(term)))]


@st.composite
def sums(draw):
    """Random sums of two to three terms of some common operands each, with x in all."""
    modes = ["a", "b", "c", "d"]
    inputs = [(T, *sorted(draw(st.sets(st.sampled_from(modes), max_size=2))))]
    inputs += [tuple(sorted(draw(st.sets(st.sampled_from(modes), max_size=3)))) for _ in range(draw(st.integers(2, 4)))]
    numbers = list(range(1, len(inputs)))
    terms = draw(st.lists(st.lists(st.sampled_from(numbers), unique=True), min_size=2, max_size=3))
    terms = [(0, *sorted(term)) for term in terms]
    answer = (T, *sorted(draw(st.sets(st.sampled_from(modes), max_size=2))))
    terms = [term for term in terms if {*answer} <= {mode for number in term for mode in inputs[number]}]
    sizes = {mode: draw(st.sampled_from([1, 2, 3, 8, 20])) for mode in [T, *modes]}
    flags = draw(st.lists(st.booleans(), min_size=len(inputs), max_size=len(inputs)).map(tuple))
    active = tuple(number == 0 for number in range(len(inputs)))
    return Question(tuple(inputs), answer, sizes, flags, active), terms


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@settings(max_examples=60 if IS_THOROUGH else 30)
@given(case=sums())
def test_a_sum_never_costs_more_than_its_terms_by_themselves(objective, case):
    asked, terms = case
    if not terms:
        return
    program = search_terms(asked, terms, objective, {})
    alone = sum(apart(asked, term, objective) for term in terms)
    assert objective.of(measured(asked, program)) <= alone * (1 + 1e-12)


@settings(max_examples=40)
@given(case=sums())
def test_each_term_alone_has_the_cheapest_of_all_orders(case):
    """The first term has nothing to share, so that its order is that of a search of every tree."""
    asked, terms = case
    for term in terms:
        program = search_terms(asked, [term], OBJECTIVE, {})
        part = asked.part(term)
        least = min(cost(part, pairs, OBJECTIVE) for pairs in trees(asked, term))
        assert OBJECTIVE.of(measured(asked, program)) == pytest.approx(least)
        assert program.exact


@settings(max_examples=40)
@given(case=sums())
def test_no_step_is_made_twice_and_none_for_nothing(case):
    asked, terms = case
    program = search_terms(asked, terms, OBJECTIVE, {})
    known = len(asked.inputs)
    leaves = [frozenset({number}) for number in range(known)]
    for line in program.lines:
        assert not leaves[line.left] & leaves[line.right]
        leaves.append(leaves[line.left] | leaves[line.right])
    made = [(below, frozenset(line.modes)) for below, line in zip(leaves[known:], program.lines, strict=True)]
    assert len({*made}) == len(made)
    assert [leaves[result] for result in program.results] == [frozenset(term) for term in terms]
    used, waiting = set(), list(program.results)
    while waiting:
        number = waiting.pop()
        if number >= known and number not in used:
            used.add(number)
            line = program.lines[number - known]
            waiting += [line.left, line.right]
    assert used == {*range(known, known + len(program.lines))}


@pytest.mark.parametrize("ask", ["apply", "delta"])
@pytest.mark.parametrize("tokens", [1, 64])
@given(network=networks() | networks(start="centered"), seed=st.integers(0, 9))
def test_a_plan_costs_no_more_than_the_plans_of_its_terms(ask, tokens, network, seed):
    made = plan(network, ask, tokens=tokens)
    single = [
        plan(replace(network, nodes={n: network.nodes[n] for n in term.nodes}, terms=(term,)), ask, tokens=tokens)
        for term in network.terms
    ]
    mirrored = len(network.terms) - len({_structure(network, term) for term in network.terms})
    if not mirrored:  # a mirrored term has the order of the first, whatever is cheapest for it
        assert made.objective.of(made.cost) <= sum(one.objective.of(one.cost) for one in single) * (1 + 1e-12)
    assert made.exact == all(one.exact for one in single) or mirrored


def _structure(network, term):
    return frozenset((network.nodes[name].factor, network.nodes[name].modes) for name in term.nodes)


TWO = {  # factors and terms of updates of two terms
    "a common factor": (
        {"A": trainable("r in"), "B": trainable("out r"), "D": trainable("out r", init=zeros())},
        ["B A", "- D A"],
    ),
    "two LoRAs": (
        {"A": trainable("r in"), "B": trainable("out r"), "C": trainable("q in"), "D": trainable("out q")},
        ["B A", "D C"],
    ),
    "a product and its part": (
        {"A": trainable("r in"), "B": trainable("out r"), "g": trainable("out"), "h": frozen("in")},
        ["B A", "- g B A h"],
    ),
    "a symmetric and a transposed core": (
        {"A": trainable("r in"), "B": trainable("out q"), "C": trainable("q r"), "Ct": same("C", "r q")},
        ["B C A", "- B Ct A"],
    ),
    "less the start": (
        {
            "A": trainable("r in"),
            "B": trainable("out r"),
            "A0": same("A", at_start=True),
            "B0": same("B", at_start=True),
        },
        ["B A", "- B0 A0"],
    ),
    "one factor and a product": (
        {"W": trainable("in out"), "A": trainable("r in"), "B": trainable("out r")},
        ["W", "- B A"],
    ),
}


@pytest.mark.parametrize("tokens", [1, 5, 300])
@pytest.mark.parametrize(("factors", "terms"), TWO.values(), ids=TWO)
def test_a_sum_of_two_terms_has_the_numbers_of_its_definition(factors, terms, tokens):
    spec = AdapterSpec(name="two", weight="out in", factors=factors, terms=terms, start="free")
    adapter = spec.bind([Site("w", (7, 6))], rank=3, seed=1, overparametrized=True)
    params = random_params(adapter, np.random.default_rng(0), frozen=True)
    network, arrays = local(adapter, params, adapter.sites[0])
    wanted = dense(adapter, params, adapter.sites[0])
    x = np.random.default_rng(1).standard_normal((tokens, 6))
    update, _ = run_plan(plan(network, "delta"), arrays)
    np.testing.assert_allclose(update * network.scale, wanted, rtol=0, atol=1e-12 * abs(wanted).max())
    made = plan(network, tokens=tokens)
    found, flops = run_plan(made, arrays | {X: x})
    np.testing.assert_allclose(found * network.scale, x @ wanted.T, rtol=0, atol=1e-12 * abs(x @ wanted.T).max())
    assert flops == made.forward_flops  # of the steps; additions of terms are not counted


@given(network=networks(), tokens=st.sampled_from([1, 64]))
def test_the_order_of_terms_changes_no_number(network, tokens):
    random = np.random.default_rng(0)
    shapes = {n: [network.sizes[mode] for mode in network.local_modes(n)] for n in network.nodes}
    arrays = {n: random.standard_normal(shape) for n, shape in shapes.items()}
    found = []
    for terms in itertools.islice(itertools.permutations(network.terms), 4):
        made = plan(replace(network, terms=terms), tokens=tokens)
        x = np.random.default_rng(1).standard_normal([made.size(mode) for mode in made.inputs[0]])
        found.append(run_plan(made, arrays | {X: x})[0])
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-9, atol=1e-9)


def test_what_depends_on_x_alone_of_a_sum_is_made_at_each_call_and_the_rest_with_each_update():
    factors, terms = TWO["less the start"]
    spec = AdapterSpec(name="two", weight="out in", factors=factors, terms=terms)
    made = plan(spec.bind([Site("w", (4, 4))], rank=4, overparametrized=True).networks[0], tokens=4096)
    when = {
        tuple(made.operands[leaf] for leaf in tree_of(made, n)[0]): step.when for n, step in enumerate(made.steps, 5)
    }
    assert when == {("A", "B"): "update", ("A0", "B0"): "once"} | {names: "call" for names in when if X in names}


def test_64_terms_of_8_factors_are_planned_in_seconds():
    """The most that a file may have."""
    factors = {f"A{n}": trainable("r in") for n in range(64)} | {"B": trainable("out r")}
    factors |= {f"g{n}": trainable("r") for n in range(6)}
    gates = " ".join(f"g{n}" for n in range(6))
    terms = [f"B A{n} {gates}" for n in range(64)]
    spec = AdapterSpec(name="many", weight="out in", factors=factors, terms=terms, start="free")
    network = spec.bind([Site("w", (64, 48))], rank=8, overparametrized=True).networks[0]
    start = time.process_time()
    made = plan(network, tokens=128)
    assert time.process_time() - start < 20
    assert len(made.results) == 64
