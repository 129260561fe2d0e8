"""Plans: cached, printed whole, with flops that a hand can count and orders that nothing beats."""

from collections import Counter

import numpy as np
import opt_einsum
import pytest
from opt_einsum.paths import ssa_to_linear

from tests.core.planning.networks import path_of, tree_of
from tests.table import places, required_of
from tests.thorough import IS_THOROUGH, each_kind
from tnadapt import AdapterSpec, PlanError, Site, families, frozen, plan, raw, trainable, zeros
from tnadapt._planning import equation_of
from tnadapt._planning.plan import X
from tnadapt.binding import BUCKETS, FIXED, OBJECTIVES, TRAINING, Cost, Objective, bucket

TERA_RANKS = {f"r_{side}{n}": rank for side in "oi" for n, rank in enumerate((8, 4, 4), 1)}


def network(spec, rank=8, layers=24, shape=(1024, 512), sizes=None):
    return spec.bind(
        places(spec, layers=layers, kinds={"q": shape}),
        rank=rank,
        sizes=dict.fromkeys(required_of(spec), 16) | (sizes or {}),
    ).networks[0]


def square(family):
    ranks = {"vera": 256, "tlora": 32, "tera": TERA_RANKS}
    sizes = {"head": 16} if family == "lorta" else None
    spec = getattr(families, family)()
    return network(spec, ranks.get(family, 8) if spec.free_bonds else None, 2, (1024, 1024), sizes)


def test_a_plan_is_made_once():
    one, two = (plan(network(families.lotr()), "apply") for _ in range(2))
    assert one is two
    assert plan(network(families.lotr(), rank=4), "apply") is not one
    assert hash(one) == hash(two)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"ask": "grad"}, "plan: expected ask to be one of apply, delta, got 'grad'"),
        ({"ask": ""}, "plan: expected ask to be one of apply, delta, got ''"),
        ({"ask": ["apply"]}, "plan: expected ask to be one of apply, delta, got"),
        ({"objective": "beauty"}, "expected objective to be one of forward, flops, training, memory, or an Objective"),
        ({"objective": 3}, "expected objective to be one of .*, got 3"),
        ({"objective": None}, "expected objective to be one of .*, got None"),
        ({"tokens": 0}, "plan: expected tokens to be an integer of at least 1, got 0"),
        ({"tokens": 2.0}, "plan: expected tokens to be an integer of at least 1, got 2.0"),
        ({"tokens": True}, "plan: expected tokens to be an integer of at least 1, got True"),
        ({"tokens": "64"}, "plan: expected tokens to be an integer of at least 1, got '64'"),
    ],
)
def test_what_cannot_be_planned_is_refused(asked, match):
    with pytest.raises(PlanError, match=match):
        plan(network(families.lora()), **asked)


def test_what_is_not_a_network_is_refused_with_the_way_to_one():
    spec = families.lora()
    adapter = spec.bind(places(spec, layers=1, kinds={"q": (4, 4)}), rank=2)
    with pytest.raises(PlanError, match=r"expected a Network, got an Adapter.\nPass one of adapter.networks."):
        plan(adapter)
    with pytest.raises(PlanError, match=r"got an AdapterSpec.\nBind the spec to sites first, and pass one of"):
        plan(spec)
    with pytest.raises(PlanError, match=r"got a str.\nPass one of the networks of an adapter"):
        plan("lora")


@pytest.mark.parametrize(
    ("tokens", "floor"), [(0, 1), (1, 1), (15, 1), (16, 16), (1023, 128), (8192, 8192), (10**9, 8192)]
)
def test_the_bucket_of_a_number_of_tokens(tokens, floor):
    assert bucket(tokens) == floor
    assert floor in BUCKETS


def test_flops_of_lora_by_hand():
    made = plan(network(families.lora()), tokens=64)
    inner, outer = 2 * 64 * 512 * 8, 2 * 64 * 8 * 1024
    saved = 64 * 512 + 64 * 8
    moved = (64 * 512 + 512 * 8 + 64 * 8) + (64 * 8 + 8 * 1024 + 64 * 1024)  # the backward pass moves it twice again
    assert made.cost == Cost(inner + outer, 2 * (inner + outer), saved, 64 * 8 + 64 * 1024, 3 * moved)
    assert [step.cost.forward for step in made.steps] == [inner, outer]
    assert plan(network(families.lora()), tokens=64, x_needs_grad=False).backward_flops == inner + 2 * outer
    assert plan(network(families.lora()), tokens=64, training=False).backward_flops == 0


def test_a_delta_has_no_tokens():
    assert plan(network(families.lora()), "delta").forward_flops == 2 * 512 * 8 * 1024


def test_a_delta_is_planned_once_for_any_number_of_tokens():
    made = plan(network(families.lora()), "delta", tokens=7)
    assert made is plan(network(families.lora()), "delta")
    assert made.tokens == 1


def test_a_plan_is_for_training_at_1024_tokens_unless_it_is_said():
    made = plan(network(families.lora()))
    assert (made.ask, made.tokens, made.training, made.x_needs_grad) == ("apply", 1024, True, True)
    assert made.objective.name == "training"


def test_one_factor_is_its_own_delta():
    spec = AdapterSpec(name="own", weight="out in", factors={"W": trainable("in out", init=zeros())}, scale=raw())
    made = plan(network(spec, rank=None, shape=(4, 6)), "delta")
    assert (made.steps, made.to_opt_einsum(), made.equation()) == ((), [], "ab->ba")
    assert made.cost == Cost(0, 0, 0, 0, 0)
    assert made.opt_einsum_flops() == 24  # opt_einsum counts the transposed copy


def test_the_order_of_lora_turns_with_the_tokens():
    """LoRA of rank 48 on a 64 x 64 weight: B A first costs 33.9 MFLOP at 4,096 tokens against 50.3 (planner.md 2)."""
    made = network(families.lora(), rank=48, shape=(64, 64))
    many, one = (plan(made, tokens=tokens, objective="forward", training=False) for tokens in (4096, 1))
    assert many.forward_flops == 2 * 64 * 48 * 64 + 2 * 4096 * 64 * 64 == 33_947_648
    assert one.forward_flops == 2 * 64 * 48 * 2
    assert [step.when for step in many.steps] == ["update", "call"]
    assert [step.when for step in one.steps] == ["call", "call"]


FROZEN = {"vera": 1.248, "tlora": 1.229, "tera": 1.389, "lora": 1.0, "lotr": 1.0, "lorta": 1.0}


@pytest.mark.parametrize("family", FROZEN)
def test_what_the_mask_of_gradients_saves(family):
    """Flops of the forward-optimal order over the training-optimal one, d = 1024, 2,048 tokens.

    The forward-optimal order is the one that this search finds when only the forward pass counts. Several are equally
    cheap; which one comes out decides, so that VeRA and TeRA differ from the 1.50 and 1.24 of opt_einsum's orders.
    """
    plans = {name: plan(square(family), tokens=2048, objective=name) for name in ("forward", "flops")}
    totals = {name: made.forward_flops + made.backward_flops for name, made in plans.items()}
    assert totals["forward"] / totals["flops"] == pytest.approx(FROZEN[family], abs=1e-3)


@pytest.mark.parametrize("family", ["lora", "lotr", "lorta"])
def test_all_trainable_costs_three_times_the_forward_pass(family):
    """Evenbly and Pfeifer, arXiv:1310.8023: then the forward-optimal order is the training-optimal one."""
    made, forward = (plan(square(family), tokens=2048, objective=name) for name in ("flops", "forward"))
    assert made.backward_flops == 2 * made.forward_flops
    assert made.forward_flops == forward.forward_flops


@pytest.mark.parametrize("family", ["tlora", "vera"])
def test_x_is_not_saved_where_a_frozen_factor_touches_it(family):
    assert plan(square(family), tokens=2048).saved_elements < 2048 * 1024 + 2048 * 256 + 1
    assert plan(square("lora"), tokens=2048).saved_elements >= 2048 * 1024
    assert plan(square("tlora"), tokens=2048).saved_elements == 2 * 2048 * 32 / 2


ASKED = [(family, ask) for family in families.__all__ for ask in ("apply", "delta")]
SOME = [each for each in ASKED[::3] if each != ("hra", "delta")]  # opt_einsum takes seconds to do this one in its order


@pytest.mark.parametrize(("family", "ask"), ASKED if IS_THOROUGH else SOME)
def test_opt_einsum_runs_the_path_and_counts_the_same(family, ask):
    made = plan(square(family), ask, tokens=16, fft=False)
    draw = np.random.default_rng(0)
    arrays = [draw.standard_normal(tuple(made.size(mode) for mode in modes)) for modes in made.inputs]
    paths = {result: path_of(made, result) for _, result in made.results}
    assert made.exact or max(len(leaves) for leaves, _ in paths.values()) > 14
    counted = 0
    for leaves, pairs in paths.values():
        equation = equation_of([made.inputs[number] for number in leaves], made.answer)
        path = ssa_to_linear(pairs) or [(0,)]
        term = [arrays[number] for number in leaves]
        counted += opt_einsum.contract_path(equation, *term, optimize=path)[1].opt_cost if pairs else 0
        found, wanted = opt_einsum.contract(equation, *term, optimize=path), opt_einsum.contract(equation, *term)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10 * abs(wanted).max())
        if len(made.results) == 1:
            assert (made.opt_einsum_flops(), made.equation().count(",")) == (made.forward_flops, len(leaves) - 1)
            again = opt_einsum.contract(made.equation(), *arrays, optimize=made.to_opt_einsum())
            np.testing.assert_allclose(again, wanted, rtol=0, atol=1e-10 * abs(wanted).max())
    uses = Counter(step for result in paths for step in {*tree_of(made, result)[1]})
    shared = sum((times - 1) * made.steps[n - len(made.operands)].cost.forward for n, times in uses.items())
    assert counted == made.forward_flops + shared


@each_kind
@pytest.mark.parametrize("ask", ["apply", "delta"])
def test_every_term_of_a_plan_reads_each_of_its_nodes_once(adapter, ask):
    for made in {plan(each, ask) for each in adapter.networks}:
        x = [X] if ask == "apply" else []
        assert list(made.operands) == [*x, *made.network.nodes]
        terms = [(sign, *tree_of(made, result)) for sign, result in made.results]
        found = Counter((sign, *sorted(made.operands[leaf] for leaf in leaves)) for sign, leaves, _ in terms)
        assert found == Counter((term.sign, *sorted([*x, *term.nodes])) for term in made.network.terms)
        numbers = range(len(made.operands), len(made.operands) + len(made.steps))
        assert {step for _, _, steps in terms for step in steps} == {*numbers}  # no step is made for nothing
        below = [(frozenset(tree_of(made, number)[0]), frozenset(made.modes(number))) for number in numbers]
        assert len({*below}) == len(below)  # none is made twice
        assert all(sorted(made.modes(result)) == sorted(made.answer) for _, result in made.results)
        assert not set(adapter.spec.site_modes) & {mode for modes in made.inputs for mode in modes}


SUM = AdapterSpec(
    name="sum",
    weight="out in",
    factors={
        "A": trainable("r in"),
        "B": trainable("out r", init=zeros()),
        "D": trainable("out r", init=zeros()),
    },
    terms=["B A", "- D A"],
)


def test_an_update_of_several_terms_has_neither_one_equation_nor_one_path():
    made = plan(network(SUM, rank=4, shape=(8, 6)), tokens=16)
    for ask, where in ((made.equation, "equation"), (made.to_opt_einsum, "to_opt_einsum")):
        with pytest.raises(PlanError, match=rf"^{where}: expected an update of one term, got 2, which .*\nLook at the"):
            ask()
    with pytest.raises(PlanError, match="expected an update of one term, got 2"):
        made.opt_einsum_flops()


def test_the_text_of_a_sum_says_so_and_shows_what_is_shared():
    lines = str(plan(network(SUM, rank=2, shape=(8, 6)), tokens=16)).splitlines()
    assert lines[0] == "apply at 16 tokens, for training (a sum of 2 terms, each searched exhaustively)"
    assert "opt_einsum" not in lines[1]
    assert [line.partition("  [")[0] for line in lines[2::2]] == ["  %4 = (x), A", "  %5 = %4, B", "  %6 = %4, D"]


def test_flops_of_a_sum_by_hand():
    made, update = (plan(network(SUM, rank=2, shape=(8, 6)), ask, tokens=16) for ask in ("apply", "delta"))
    assert made.forward_flops == 2 * 16 * 2 * (6 + 8 + 8)  # x A is made once
    assert made.backward_flops == 2 * made.forward_flops
    assert made.saved_elements == 16 * 6 + 16 * 2
    assert made.peak_elements == 16 * 2 + 16 * 8 + 16 * 8
    assert update.forward_flops == 2 * 2 * 8 * 2 * 6


def test_how_often_the_values_of_a_step_change():
    made = plan(square("tera"), tokens=2048)
    assert {step.when for step in made.steps} == {"update", "call"}
    frozen_pair = plan(network(families.vera(), rank=2, shape=(3, 3)), "delta", objective="forward")
    assert {step.when for step in frozen_pair.steps} == {"update"}


def test_the_text_says_that_every_step_runs_at_every_call():
    factors = {"A": frozen("out p"), "B": frozen("p q"), "C": trainable("q r"), "D": trainable("r in", init=zeros())}
    spec = AdapterSpec(name="two", weight="out in", factors=factors, scale=raw())
    made = plan(network(spec, rank={"p": 8, "q": 2, "r": 2}, shape=(8, 8)), tokens=100_000)
    ends = {"once": ", from frozen factors alone", "update": ", from factors alone", "call": ""}
    costs = str(made).splitlines()[3::2]
    assert {step.when for step in made.steps} == set(ends)
    for step, line in zip(made.steps, costs, strict=True):
        assert line.endswith(f"; at every call{ends[step.when]}")


def cp(count):
    """A tensor of `count` modes of size 2 in CP form: every factor carries the bond."""
    out, into = [f"o{n}" for n in range(count // 2)], [f"i{n}" for n in range(count - count // 2)]
    factors = {f"A{n:02}": trainable(f"{mode} r") for n, mode in enumerate(out + into)}
    weight = f"({' '.join(out)}) ({' '.join(into)})"
    spec = AdapterSpec(name="cp", weight=weight, factors=factors, scale=raw(), start="free")
    return network(spec, rank=4, shape=(2 ** len(out), 2 ** len(into)))


@pytest.mark.parametrize("count", [14, 40])
def test_a_plan_of_many_factors_is_not_proven_and_says_so(count):
    made = plan(cp(count))
    assert not made.exact
    assert str(made).splitlines()[0].endswith("for training (not proven cheapest)")
    assert made.opt_einsum_flops() == made.forward_flops


def test_a_sum_with_one_term_of_many_factors_is_not_proven_and_says_so():
    factors = {f"A{n:02}": trainable("o0 i0 r") for n in range(14)} | {"B": trainable("o0 i0")}
    terms = ["B", " ".join(name for name in factors if name != "B")]
    spec = AdapterSpec(name="two", weight="o0 i0", factors=factors, terms=terms, start="free")
    made = plan(network(spec, rank=2, shape=(3, 2)))
    assert not made.exact
    assert str(made).splitlines()[0].endswith("(a sum of 2 terms, each not searched exhaustively)")


def test_what_is_explained_is_what_planner_md_measured():
    """LoRA never pays to fold; a full-rank TeRA does at many tokens and not at one; no way is cheaper than the plan."""
    assert "it would not pay" in plan(square("lora"), tokens=2048).explain()
    full = network(families.tera(), rank=1024, layers=2, shape=(1024, 1024))
    assert "it would pay on a full-precision weight" in plan(full, tokens=8192).explain()
    assert "it would not pay" in plan(full, tokens=1).explain()
    assert float(plan(full, tokens=8192).explain().split("first: ")[1].split(" ")[0]) >= 1.0
    with pytest.raises(PlanError, match='explain: expected a plan for "apply", got one for "delta"'):
        plan(square("lora"), "delta").explain()


@pytest.mark.parametrize("sizes", [(5, 6, 7, 2), (1, 3, 2, 1)], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("x_needs_grad", [True, False])
@pytest.mark.parametrize("weights", [(0.0, 0.0, 0.0), (50.0, 0.0, 0.0), (0.0, 50.0, 0.0), (0.0, 0.0, 50.0)], ids=str)
def test_what_making_and_folding_cost_by_hand(weights, training, x_needs_grad, sizes):
    """Making takes x times the update beside the update, folding the gradient of the weight."""
    tokens, outer, inner, rank = sizes
    made = network(families.lora(), rank=rank, shape=(outer, inner))
    goal = Objective("own", *weights)
    own = plan(made, tokens=tokens, training=training, x_needs_grad=x_needs_grad, objective=goal)
    update = goal.of(plan(made, "delta", training=training, x_needs_grad=False, objective=goal).cost)
    flops, saved = 2 * tokens * outer * inner, tokens * inner
    moved = tokens * outer + tokens * inner + outer * inner
    products = (1 + x_needs_grad) if training else 0
    dense = Cost(flops, flops * products, saved if training else 0, 0, moved * (1 + products))
    added = 3 * outer * inner  # W + dW: two are read, one is written
    gradient = Cost(0, flops, saved, 0, added + moved) if training else Cost(0, 0, 0, 0, added)
    first, folded = ((update + goal.of(more)) / goal.of(own.cost) for more in (dense, gradient))
    pays = "it would pay on a full-precision weight" if folded < 1 else "it would not pay"
    assert own.explain() == (
        f"apply at {tokens} tokens, for own: {goal.of(own.cost):.3g}\n"
        f"  making the update first: {first:.2f} times that\n"
        f"  folding it into the weight: {folded:.2f} times that; {pays}"
    )


def test_fixed_factors_are_multiplied_first_where_tokens_are_few():
    """LoRTA at one token: two products as small as those of LoRA, instead of a pass for each vector."""
    adapter = families.lorta().bind([Site("0.q", (256, 256), {"layer": 0, "kind": "q"})], rank=8, sizes={"head": 4})
    (network,) = adapter.networks
    fixed = plan(network, tokens=1, training=False, objective=FIXED["cpu"])
    each = plan(network, tokens=1, training=False)
    calls = [sum(step.when == "call" for step in order.steps) for order in (fixed, each)]
    assert calls[0] == 2 < calls[1]
    assert fixed.factor_products == 256 * 8
    assert each.factor_products < fixed.factor_products


def test_a_device_for_which_a_pass_is_dear_takes_more_products_instead():
    """VeRA: on a GPU its b goes into B, although the gradient of that is one more product over all tokens."""
    adapter = families.vera().bind([Site("0.q", (512, 512), {"layer": 0, "kind": "q"})], rank=256)
    cpu, cuda = (plan(adapter.networks[0], tokens=1024, objective=TRAINING[device]) for device in ("cpu", "cuda"))
    assert cuda.cost.forward + cuda.cost.backward > cpu.cost.forward + cpu.cost.backward
    assert cuda.cost.moved < cpu.cost.moved
    assert TRAINING["cpu"] is OBJECTIVES["training"]
