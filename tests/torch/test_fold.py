"""Fold updates into the weights: the same numbers and operations as without folding, and the weights restored after."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import remove_parametrizations

from tests.torch import hosts
from tnadapt import SiteError, families, magnitude
from tnadapt_torch import attach


def pair(family):
    """Make a model with the updates on its outputs and one with the updates in its weights."""
    spec, sizes = hosts.FAMILIES[family]
    models = [hosts.toy(), hosts.toy()]
    states = [
        attach(model, spec, target_modules=hosts.TARGETS, seed=3, fold=fold, **sizes)
        for model, fold in zip(models, (False, True), strict=True)
    ]
    for state in states:
        hosts.wake(state)
    return models, states


@pytest.mark.parametrize("family", hosts.FAMILIES)
def test_a_folded_update_gives_the_same_outputs_and_gradients(family):
    models, states = pair(family)
    for model in models:
        model.double()
        model(hosts.words()).square().sum().backward()
    hosts.close(models[1](hosts.words()), models[0](hosts.words()), 1e-10)
    for one, two in zip(states[0].parameters(), states[1].parameters(), strict=True):
        hosts.close(two.grad, one.grad, 1e-10)


def test_a_folded_adapter_can_be_disabled_copied_merged_and_detached():
    (plain, model), (_, state) = pair("tera")
    before = dict(hosts.toy().named_parameters())
    with state.disabled():
        hosts.close(model(hosts.words()), hosts.toy()(hosts.words()))
    copied = copy.deepcopy(model)
    wanted = plain(hosts.words())
    hosts.close(copied(hosts.words()), wanted)
    state.merge()
    hosts.close(model(hosts.words()), wanted)
    state.unmerge()
    state.detach()
    assert {name for name, _ in model.named_parameters()} == before.keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


class Experts(torch.nn.Module):
    """A block that holds the weight itself."""

    def __init__(self):
        super().__init__()
        self.up = torch.nn.Parameter(hosts.normal(4, 8, 8))

    def forward(self, x):
        return torch.einsum("eoi,ti->to", self.up, x)


COMPILED = {  # modules that are compiled in place, and hold the weight that an update is folded into
    "a linear layer": (torch.nn.Linear, {"target_modules": ["0"], "fold": True}),
    "a block with a parameter": (lambda *_: Experts(), {"target_parameters": {"0.up": "expert out in"}}),
}


@pytest.mark.parametrize("when", ["before attach", "after attach"])
@pytest.mark.parametrize("kind", COMPILED)
def test_a_copy_of_a_compiled_module_computes_with_its_own_update(kind, when):
    make, words = COMPILED[kind]
    torch.manual_seed(0)
    torch.compiler.reset()
    model, x = torch.nn.Sequential(make(8, 8)), hosts.normal(3, 8)
    if when == "before attach":
        model[0].compile(backend="eager")
        model(x)
    state = hosts.wake(attach(model, "lora", rank=2, seed=0, **words))
    if when == "after attach":
        model[0].compile(backend="eager")
    wanted = model(x).detach()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for factor in copied.tnadapt_default.parameters():
            factor.zero_()
    hosts.close(model(x).detach(), wanted)
    with state.disabled():
        base = model(x).detach()
    hosts.close(copied(x).detach(), base)
    copied.tnadapt_default.detach()
    assert not hasattr(copied[0], "parametrizations")


def test_detach_after_folding_restores_the_same_parameter_objects():
    model = hosts.toy()
    spec, sizes = hosts.FAMILIES["lora"]
    before = [(name, id(parameter)) for name, parameter in model.named_parameters()]
    attach(model, spec, target_modules=hosts.TARGETS, seed=3, fold=True, **sizes).detach()
    assert [(name, id(parameter)) for name, parameter in model.named_parameters()] == before  # as an optimizer counts


@pytest.mark.parametrize("stays", [True, False])
def test_an_update_that_was_taken_out_of_its_weight_by_hand_is_noticed(stays, tmp_path):
    model = hosts.toy()
    state = hosts.adapt(model, "lora", fold=True)
    remove_parametrizations(model.layers[0].mlp.down, "weight", leave_parametrized=stays)
    before = hosts.photo(model)
    for act in (state.merge, state.norms, lambda: state.save(tmp_path / "a.safetensors")):
        with pytest.raises(SiteError, match=r"^layers.0.mlp.down: expected the update to be folded into the weight"):
            act()
    hosts.assert_same_photo(before, hosts.photo(model))
    state.detach()
    state.save(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("change", "more", "match"),
    [
        (
            lambda model: model.bfloat16(),
            {},
            "expected a float32 or float64 weight to fold an update into, got torch.bfloat16",
        ),
        (
            lambda model: model,
            {"dropout": 0.1},
            r"^fold: expected dropout=0, got dropout=0\.1\.\n"
            r"A folded update has no input of its own to apply dropout to\. Leave out dropout\.$",
        ),
    ],
)
def test_folding_with_dropout_or_half_precision_raises(change, more, match):
    model = change(hosts.toy())
    before = hosts.photo(model)
    spec, sizes = hosts.FAMILIES["lora"]
    with pytest.raises(SiteError, match=match):
        attach(model, spec, target_modules=hosts.TARGETS, seed=3, fold=True, **sizes, **more)
    assert hosts.photo(model).keys() == before.keys()
    assert list(dict(model.named_modules())) == list(dict(change(hosts.toy()).named_modules()))


def test_two_updates_cannot_be_folded_into_one_weight():
    model = hosts.toy()
    spec, sizes = hosts.FAMILIES["lora"]
    attach(model, spec, target_modules=hosts.TARGETS, seed=3, fold=True, **sizes)
    with pytest.raises(SiteError, match="got one that is already parametrized"):
        attach(model, spec, target_modules=hosts.TARGETS, seed=3, fold=True, adapter_name="two", **sizes)


class Tripled(nn.Module):
    """A change of a weight that is the user's own."""

    def forward(self, weight):
        return 3 * weight


READERS = [magnitude(families.lora()), families.hira()]


@pytest.mark.parametrize("spec", READERS, ids=lambda spec: spec.name)
def test_an_update_that_reads_the_weight_it_is_folded_into_reads_it_below_later_changes(spec):
    model, x = nn.Sequential(nn.Linear(6, 8, bias=False)).double(), torch.randn(5, 6).double()
    weight = model[0].weight.detach().clone()
    state = hosts.wake(attach(model, spec, target_modules=["0"], rank=2, fold=True).double())
    delta = state.delta("0")
    parametrize.register_parametrization(model[0], "weight", Tripled())
    hosts.close(state.delta("0"), delta, 1e-12)
    hosts.close(model(x), x @ (3 * (weight + delta)).T, 1e-12)


@pytest.mark.parametrize("spec", READERS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_weight_is_read_without_an_update_below_a_change_of_the_users(spec, when):
    model = nn.Sequential(nn.Linear(6, 8, bias=False)).double()
    alone, x = copy.deepcopy(model), torch.randn(5, 6).double()
    weight = model[0].weight.detach().clone()
    other = hosts.wake(attach(model, "lora", target_modules=["0"], rank=2, fold=True, adapter_name="other").double())
    if when == "before":
        parametrize.register_parametrization(model[0], "weight", Tripled())
    state = attach(model, spec, target_modules=["0"], rank=2).double()
    parametrize.register_parametrization(alone[0], "weight", Tripled())
    twin = hosts.wake(attach(alone, spec, target_modules=["0"], rank=2).double())
    if when == "after":
        parametrize.register_parametrization(model[0], "weight", Tripled())
    for value, wanted in zip(state.parameters(), twin.parameters(), strict=True):
        value.data.copy_(wanted)
    hosts.close(state.delta("0"), twin.delta("0"), 1e-12)
    hosts.close(model(x), x @ (3 * (weight + other.delta("0")) + twin.delta("0")).T, 1e-12)


def test_lengths_start_from_the_weight_without_an_update_below_a_change_of_the_users():
    model = nn.Sequential(nn.Linear(6, 8, bias=False)).double()
    weight = model[0].weight.detach().clone()
    hosts.wake(attach(model, "lora", target_modules=["0"], rank=2, fold=True, adapter_name="other").double())
    parametrize.register_parametrization(model[0], "weight", Tripled())
    state = attach(model, READERS[0], target_modules=["0"], rank=2)
    hosts.close(state.params()["magnitude"].double(), 3 * weight.norm(dim=1), 1e-6)
