"""Flags of requires_grad: set by attach, kept where the user changed them, and put back by path."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.thorough import IS_THOROUGH
from tests.torch import hosts
from tnadapt import SiteError
from tnadapt_torch import attach


def some_of(orders, every):
    """All orders in `make laws`, else a few."""
    return list(orders) if IS_THOROUGH else list(orders)[::every]


def flags(model):
    return {name: p.requires_grad for name, p in model.named_parameters() if "tnadapt" not in name}


def mixed():
    """Make a toy model of which some parameters were frozen before."""
    model = hosts.toy()
    model.embed.requires_grad_(requires_grad=False)
    model.layers[0].mlp.up.bias.requires_grad_(requires_grad=False)
    return model


def test_what_the_user_unfroze_stays_trainable_through_a_second_attach_and_both_detaches():
    model = mixed()
    first = hosts.adapt(model, "lora")
    model.embed.requires_grad_(requires_grad=True)
    second = hosts.adapt(model, "lotr", name="second")
    assert model.embed.weight.requires_grad
    first.detach()
    assert model.embed.weight.requires_grad
    assert not model.layers[1].norm.weight.requires_grad
    second.detach()
    assert flags(model) == flags(mixed()) | {"embed.weight": True}


NORM = {  # adapters that have the norm of the first block in their hosts; one trains it in full
    "whole": lambda model: hosts.adapt(model, "lora", name="whole"),
    "part": lambda model: hosts.adapt(model.layers, "lotr", name="part"),
    "saved": lambda model: hosts.adapt(model, "lora", name="saved", modules_to_save=["layers.0.norm"]),
}


@pytest.mark.parametrize("was_trained", [True, False])
@pytest.mark.parametrize("unfrozen_after", [0, 1, None])
@pytest.mark.parametrize("order", some_of(itertools.permutations(NORM), 3), ids="-".join)
def test_what_the_user_unfroze_stays_trainable_though_a_later_adapter_trained_it(order, unfrozen_after, was_trained):
    for leaving in some_of(itertools.permutations(order), 2):  # in half of the orders, each is the first once
        model, states, unfrozen = hosts.toy(), {}, False
        norm = model.layers[0].norm
        norm.requires_grad_(requires_grad=was_trained)
        for turn, name in enumerate(order):
            states[name] = NORM[name](model)
            if turn == unfrozen_after and not norm.weight.requires_grad:
                norm.requires_grad_(requires_grad=True)
                unfrozen = True
        for name in leaving:
            assert norm.weight.requires_grad == norm.bias.requires_grad == (unfrozen or "saved" in states), leaving
            states.pop(name).detach()
        assert norm.weight.requires_grad == (unfrozen or was_trained), leaving


def test_a_factor_that_the_user_froze_stays_frozen_through_a_second_attach():
    model = hosts.toy()
    state = hosts.adapt(model, "lotr")
    frozen = next(iter(state.parameters()))
    frozen.requires_grad_(requires_grad=False)
    hosts.adapt(model, "lora", name="second")
    assert not frozen.requires_grad


HOSTS = {  # adapters on the whole, on parts and on a part of a part, one of them folded, two with saved modules
    "whole": lambda model: hosts.adapt(model, "lora", name="whole", modules_to_save=["score"]),
    "part": lambda model: hosts.adapt(model.layers, "lotr", name="part", modules_to_save=["0.norm"]),
    "layer": lambda model: hosts.adapt(model.layers[1], "tera", name="layer"),
    "folded": lambda model: hosts.adapt(model, "lora", name="folded", fold=True, target_modules=["k_proj"]),
}


@pytest.mark.parametrize("order", some_of(itertools.permutations(HOSTS, 3), 5), ids="-".join)
def test_adapters_on_parts_and_on_the_whole_leave_no_trace_in_any_order(order):
    for leaving in some_of(itertools.permutations(order), 2):
        model = mixed()
        before = hosts.photo(model)
        states = {name: HOSTS[name](model) for name in order}
        trained = {id(p) for s in states.values() for p in (*s.parameters(), *s.saved.parameters())}
        assert {id(p) for p in model.parameters() if p.requires_grad} == trained
        for name in leaving:
            states.pop(name).detach()
            trained = {id(p) for s in states.values() for p in (*s.parameters(), *s.saved.parameters())}
            if states:
                covered = {id(p) for s in states.values() for p in s.model.parameters()}
                assert {id(p) for p in model.parameters() if p.requires_grad and id(p) in covered} == trained
        after = hosts.photo(model)
        assert after["flags"] == before["flags"], leaving
        assert after["kinds"] == before["kinds"]


def rebound(model):
    """Give every parameter of the host a new object, as loads with assign=True do."""
    model.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, assign=True)


def parametrized(model):
    nn.utils.parametrize.register_parametrization(model.layers[0].mlp.up, "weight", nn.Identity())


@pytest.mark.parametrize("change", [rebound, parametrized, nn.Module.double])
def test_flags_are_put_back_where_parameters_were_replaced(change):
    model = mixed()
    wanted = flags(model)
    state = hosts.adapt(model, "lora")
    change(model)
    state.detach()
    found = {name.replace("parametrizations.", "").removesuffix(".original"): v for name, v in flags(model).items()}
    assert found == wanted


def pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.5)


NORMS = {
    "pruned": (pruned, lambda layer: prune.remove(layer, "weight")),
    "normed": (parametrizations.weight_norm, lambda layer: parametrize.remove_parametrizations(layer, "weight")),
}


@pytest.mark.parametrize("was_trained", [True, False])
@pytest.mark.parametrize("is_undone", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_flags_are_put_back_where_a_weight_is_made_of_others(norm, is_undone, was_trained):
    make, undo = NORMS[norm]
    model = hosts.toy()
    up = model.layers[0].mlp.up
    if is_undone:
        make(up)
    for name, parameter in up.named_parameters():
        parameter.requires_grad_(was_trained if "bias" not in name else not was_trained)
    state = hosts.adapt(model, "lora")
    (undo if is_undone else make)(up)
    assert not any(parameter.requires_grad for parameter in up.parameters())
    state.detach()
    assert {name for name, flag in flags(up).items() if flag == was_trained} == dict(up.named_parameters()).keys() - {
        "bias"
    }


def test_unmerge_writes_to_the_parameters_that_the_host_has_now():
    model = hosts.toy()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = hosts.adapt(model, "lora")
    state.merge()
    rebound(model)
    state.unmerge()
    state.detach()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_merges_of_nested_hosts_are_undone_in_reverse_order_only():
    model = hosts.toy()
    inner, outer = hosts.adapt(model.layers, "lora", name="inner"), hosts.adapt(model, "lotr", name="outer")
    wanted = model(hosts.words())
    inner.merge()
    outer.merge()
    with pytest.raises(SiteError, match=r"'outer' was merged later"):
        inner.unmerge()
    outer.unmerge()
    inner.unmerge()
    hosts.close(model(hosts.words()), wanted)


def test_the_total_of_parameters_is_that_of_the_model_whichever_adapter_tells_it(capsys):
    model = hosts.toy()
    states = [hosts.adapt(model, "lora"), hosts.adapt(model.layers, "vera", name="second")]
    for state in states:
        state.print_trainable_parameters()
    one, two = capsys.readouterr().out.splitlines()
    assert one == two.replace(two, one) or one.split("||")[1] != two.split("||")[1]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"trainable params: {trained:,}" in one


# ---- modules trained in full that share parameters


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.emb, self.head = nn.Linear(4, 4), nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.emb.weight


def test_a_tied_module_keeps_its_trained_values_through_disabled(tmp_path):
    model = Tied()
    before = model.emb.weight.detach().clone()
    state = attach(model, "lora", target_modules=["q"], modules_to_save=["emb", "head"], rank=2)
    with torch.no_grad():
        model.emb.weight.add_(1.0)
    with state.disabled():
        assert torch.equal(model.head.weight, before)
        values = state.saved.values()
    assert torch.equal(model.emb.weight, before + 1)
    assert torch.equal(values["emb.weight"], before + 1)
    assert torch.equal(values["head.weight"], before + 1)
    state.detach()
    assert torch.equal(model.emb.weight, before)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_flag_of_a_tied_parameter_comes_back_from_a_part_and_the_whole(order):
    model = nn.ModuleDict({"part": nn.ModuleDict({"q": nn.Linear(4, 4), "emb": nn.Embedding(5, 4)})})
    model["head"] = nn.Linear(4, 5, bias=False)
    model["head"].weight = model["part"]["emb"].weight
    states = [
        attach(model["part"], "lora", target_modules=["q"], rank=2, adapter_name="inner"),
        attach(model, "lora", target_modules=["q"], modules_to_save=["head"], rank=2, adapter_name="outer"),
    ]
    for place in order:
        states[place].detach()
    assert all(p.requires_grad for p in model.parameters())


def test_the_optimizer_gets_a_tied_parameter_once():
    model = Tied()
    state = attach(model, "lora", target_modules=["q"], modules_to_save=["emb", "head"], rank=2)
    groups = state.parameter_groups(lr=0.1)
    trained = [p for group in groups for p in group["params"]]
    assert len(trained) == len({id(p) for p in trained}) == 3
    torch.optim.SGD(groups)


def test_modules_that_share_a_bias_inside():
    model = hosts.toy()
    model.layers[0].self_attn.k_proj.bias = model.layers[0].self_attn.v_proj.bias
    state = hosts.adapt(model, "lora", target_modules=["down"], modules_to_save=["layers.0.self_attn"])
    bias = model.layers[0].self_attn.k_proj.bias
    with torch.no_grad():
        bias.fill_(3.0)
    with state.disabled():
        assert not (bias == 3).any()
    assert (bias == 3).all()
