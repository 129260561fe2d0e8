"""The update folded into the weight: the same numbers, the same life, the weight's own parameter back at the end."""

import copy

import pytest
import torch

from tests.torch import hosts
from tnadapt import SiteError
from tnadapt_torch import attach


def pair(family):
    """A host with the update on the output, and one with it in the weights."""
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


def test_a_folded_adapter_is_switched_merged_copied_and_taken_off():
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


def test_weights_of_a_folded_host_are_the_same_objects_afterwards():
    model = hosts.toy()
    spec, sizes = hosts.FAMILIES["lora"]
    before = {id(parameter) for parameter in model.parameters()}
    attach(model, spec, target_modules=hosts.TARGETS, seed=3, fold=True, **sizes).detach()
    assert {id(parameter) for parameter in model.parameters()} == before


@pytest.mark.parametrize(
    ("change", "more", "match"),
    [
        (lambda model: model.bfloat16(), {}, "folding needs a float32 or float64 weight"),
        (
            lambda model: model,
            {"dropout": 0.1},
            r"no x of its own to drop entries of\.\nHowever, dropout is 0\.1",
        ),
    ],
)
def test_what_cannot_be_folded_is_refused(change, more, match):
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
    with pytest.raises(SiteError, match="parametrized already"):
        attach(model, spec, target_modules=hosts.TARGETS, seed=3, fold=True, adapter_name="two", **sizes)
