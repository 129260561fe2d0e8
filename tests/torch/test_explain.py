"""The table that says how each site runs, against the products that a call makes."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.cyclic import convolving
from tests.torch import hosts
from tnadapt import SiteError, families, magnitude
from tnadapt_torch import attach

WIDTH = 32


def rows(text):
    """Return {path: (how, flops)} of a table."""
    _, _, *lines = text.splitlines()
    cells = [line.split("  ") for line in lines]
    return {first: (" ".join(rest[:-1]).strip(), int(rest[-1].replace(",", ""))) for first, *rest in cells}


def layers(count=1, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(count)]).to(dtype)


def products(model, tokens):
    """Count the products with a matrix of the weight's size."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(tokens, WIDTH, dtype=next(model.parameters()).dtype))
    return counter.get_total_flops() / (2 * tokens * WIDTH * WIDTH)


@pytest.mark.parametrize("spec", [families.hira(), magnitude(families.hira())], ids=lambda spec: spec.name)
@pytest.mark.parametrize("tokens", [1, 8192])
def test_it_says_inside_exactly_where_one_product_serves_the_layer(spec, tokens):
    model = layers()
    state = hosts.wake(attach(model, spec, target_modules=["0"], rank=4, seed=0)).double()
    how, _ = rows(state.explain(tokens, training=False))["0"]
    assert (how == "in the weight, x (W + dW)") == (tokens > 1) == (products(model, tokens) < 1.5)


def test_the_flops_are_those_of_the_update():
    model = layers(2)
    state = attach(model, families.lora(), target_modules=["0", "1"], rank=3)
    told = rows(state.explain(20))
    assert state.explain(20).splitlines()[0] == "a call of 20 tokens, planned for 16"
    assert state.explain(20).splitlines()[1].endswith("  flops at 16 tokens")  # not at 20
    assert state.explain(3).splitlines()[1].endswith("  flops at 1 token")
    assert told["0"][0] == "added to the output"
    assert told["0"] == told["1"]
    assert 0 <= told["0"][1] - 2 * 16 * 3 * 2 * WIDTH <= 2 * 16 * WIDTH  # and the scale


@pytest.mark.parametrize("split", [(2, 1), (1, 2), (2, 2)])
def test_blocks_of_columns_have_no_product_of_the_layer_at_hand(split):
    model = layers()
    state = attach(model, families.oft(), target_modules=["0"], sizes={"i": 4}, blocks={"0": split})
    told = sum(flops for _, flops in rows(state.explain(16)).values())
    assert told == round((products(model, 16) - 1) * 2 * 16 * WIDTH * WIDTH)


def test_asking_is_no_call():
    """A site that was never called is told in a warning."""
    state = attach(layers(), families.hira(), target_modules=["0"], rank=4)
    assert "in the weight" in state.explain(8192)
    assert state.updates["0"].is_idle


@pytest.mark.parametrize("change", ["dropout", "half", "another adapter", "another class"])
def test_what_a_weight_cannot_hold_is_said_to_be_added(change):
    model = layers(dtype=torch.bfloat16 if change == "half" else torch.float64)
    if change == "another class":
        model = nn.Sequential(type("Own", (nn.Linear,), {})(WIDTH, WIDTH))
    state = attach(model, families.hira(), target_modules=["0"], rank=4, dropout=0.5 * (change == "dropout"))
    if change == "another adapter":
        attach(model, families.lora(), target_modules=["0"], rank=2, adapter_name="b")
    assert rows(state.explain(8192))["0"][0] == "added to the output"
    if change == "dropout":
        model.eval()
        assert rows(state.explain(8192))["0"][0] == "in the weight, x (W + dW)"


def test_it_says_what_folds_convolves_or_adds_nothing():
    model = layers()
    state = attach(model, families.lora(), target_modules=["0"], rank=2, fold=True)
    assert rows(state.explain())["0"][0] == "in the weight, x (W + dW), by fold=True"
    state.merge()
    assert rows(state.explain())["0"] == ("none: merged into the weight", 0)
    state.unmerge()
    with state.disabled():
        assert rows(state.explain())["0"] == ("none: disabled", 0)
    state.detach()
    with pytest.raises(SiteError, match="got a detached one"):
        state.explain()
    with convolving():
        sizes = {"o2": 8, "i2": 8}
        state = attach(layers(), families.c3a(), target_modules=["0"], sizes=sizes)
        assert rows(state.explain(16))["0"][0] == "added to the output, by a convolution"


def test_sites_of_another_task_add_nothing():
    state = attach(layers(), families.mtlora_tasks(), target_modules=["0"], rank=2, tasks=["a", "b"])
    told = [how for how, _ in rows(state.explain()).values()]
    assert sorted(told) == ["added to the output", "none: of another task"]
    state.set_task("b")
    assert [how for how, _ in rows(state.explain()).values()] == told[::-1]


@pytest.mark.parametrize("tokens", [0, 2.5, True, "8"])
def test_tokens_are_a_positive_integer(tokens):
    state = attach(layers(), families.lora(), target_modules=["0"], rank=2)
    with pytest.raises(SiteError, match=r"^explain: expected a positive integer as tokens, got .*\nWrite tokens="):
        state.explain(tokens)


def test_in_a_block_it_says_which_products_the_sites_share_and_why_not():
    model = layers(3)
    state = attach(model, families.lotr(), target_modules=["0", "1", "2"], rank=2)
    alone = rows(state.explain(128))
    with state.fixed():
        told = rows(state.explain(128))
        assert rows(state.explain(128, training=False)).keys() == told.keys()
    assert {how for how, _ in told.values()} == {"added to the output, products of 3 sites at once"}
    assert all(told[path][1] < alone[path][1] for path in told)
    single = attach(layers(), families.lotr(), target_modules=["0"], rank=2)
    with single.fixed():
        assert rows(single.explain(128))["0"][0] == "added to the output, alone: no other site has its network"
    wide = nn.Sequential(*[nn.Linear(512, 512) for _ in range(2)])
    lora = attach(wide, families.lora(), target_modules=["0", "1"], rank=2)
    with lora.fixed():
        assert rows(lora.explain(512))["0"][0] == "added to the output, alone: no product of factors pays"
