"""Flags of requires_grad: what PEFT does to one adapter changes no flag of another, nor of a frozen factor."""

import random
import warnings

import pytest
import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings from importing PEFT
    from peft import LoraConfig, PeftModel, get_peft_model

from tnadapt import SiteError, families
from tnadapt_torch.peft import TnConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns whenever it chooses another adapter or unmerges one


class Net(nn.Module):
    """Three linear layers and a head."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.head = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        return self.head(self.v(self.k(self.q(x))))


def ours(**more):
    return TnConfig(spec=families.lora(), **{"rank": 2, "target_modules": ["q", "k"]} | more)


def lora(**more):
    return LoraConfig(r=2, **{"target_modules": ["q", "k"]} | more)


def adapted(make=ours, **more):
    torch.manual_seed(0)
    return get_peft_model(Net(), make(**more))


def factors(model, adapter, make=ours):
    """Return the parameters of an adapter in the order q.A, q.B, k.A, k.B."""
    if make is ours:
        params = model.base_model.states()[adapter].params()
        return [params[name] for word in ("q.A", "q.B", "k.A", "k.B") for name in params if name.endswith(word)]
    layers = [getattr(model.base_model.model, name) for name in "qk"]
    return [each[adapter].weight for layer in layers for each in (layer.lora_A, layer.lora_B)]


def flags(model, make=ours):
    """Return the flags of every adapter's factors and heads, and of the host."""
    found = {name: [p.requires_grad for p in factors(model, name, make)] for name in model.peft_config}
    heads = getattr(model.base_model.model.head, "modules_to_save", {})
    found |= {f"{name} head": [p.requires_grad for p in heads[name].parameters()] for name in heads}
    base = model.base_model.model.v.weight
    return found | {"host": [base.requires_grad]}


def stays(model, act):
    """Assert that an act changes no flag that was there before it."""
    before = flags(model)
    act()
    after = flags(model)
    assert {name: after[name] for name in before if name in after} == {n: f for n, f in before.items() if n in after}
    return after


@pytest.fixture
def folder(tmp_path):
    adapted(modules_to_save=["head"]).save_pretrained(tmp_path / "head")
    adapted().save_pretrained(tmp_path / "plain")
    return tmp_path


def freeze_one(model):
    factors(model, "default")[1].requires_grad_(False)


def freeze_all(model):
    model.set_requires_grad("default", False)


def thaw_the_host(model):
    model.base_model.model.v.weight.requires_grad_(True)


def disable(model):
    model.base_model.disable_adapter_layers()


STARTS = {"as it was made": lambda model: None} | {
    act.__name__: act for act in (freeze_one, freeze_all, thaw_the_host, disable)
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("saved", [None, ["head"]])
@pytest.mark.parametrize("act", ["add", "add frozen", "load", "load to train", "load with a head", "fail"])
def test_a_new_adapter_leaves_all_flags_as_they_are(act, saved, start, folder):
    model = adapted(modules_to_save=saved)
    STARTS[start](model)

    def fail():
        with pytest.raises(SiteError, match="rank"):
            model.add_adapter("second", ours(rank=None))

    acts = {
        "add": lambda: model.add_adapter("second", ours()),
        "add frozen": lambda: model.add_adapter("second", ours(inference_mode=True)),
        "load": lambda: model.load_adapter(folder / "plain", "second"),
        "load to train": lambda: model.load_adapter(folder / "plain", "second", is_trainable=True),
        "load with a head": lambda: model.load_adapter(folder / "head", "second"),
        "fail": fail,
    }
    after = stays(model, acts[act])
    assert "second" not in after or set(after["second"]) == {act == "load to train"}


@pytest.mark.parametrize("start", ["freeze_one", "freeze_all"])
@pytest.mark.parametrize("active", [["default"], ["default", "second"]])
def test_deleting_an_adapter_leaves_the_flags_of_the_others(start, active):
    model = adapted()
    model.add_adapter("second", ours())
    model.base_model.set_adapter(active)
    STARTS[start](model)
    after = stays(model, lambda: model.delete_adapter("second"))
    assert not all(after["default"])


def test_the_adapter_that_becomes_active_by_a_deletion_is_trained():
    model = adapted()
    model.add_adapter("second", ours())
    model.set_requires_grad("second", False)
    model.delete_adapter("default")
    assert all(flags(model)["second"])


@pytest.mark.parametrize("start", ["as it was made", "freeze_one", "freeze_all", "thaw_the_host"])
def test_disabling_for_a_while_leaves_the_flags(start):
    model = adapted(modules_to_save=["head"])
    STARTS[start](model)
    before = flags(model)
    with model.disable_adapter():
        assert not any(flags(model)["default"])
        with model.disable_adapter():
            pass
        model.add_adapter("second", ours())
    assert flags(model) == before | {"second": [False] * 4}


def test_an_adapter_for_inference_stays_frozen_when_it_is_disabled_and_enabled(folder):
    model = PeftModel.from_pretrained(Net(), folder / "head")
    with model.disable_adapter():
        pass
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_flags_that_are_set_while_adapters_are_disabled_stay():
    model = adapted()
    model.add_adapter("second", ours())
    with model.disable_adapter():
        model.set_adapter("second")
    assert (any(flags(model)["default"]), all(flags(model)["second"])) == (False, True)
    with model.disable_adapter():
        model.set_requires_grad("default")
    assert all(flags(model)["default"])


EVENTS = {
    "add": lambda model, make, name: model.add_adapter(name, make()),
    "add frozen": lambda model, make, name: model.add_adapter(name, make(inference_mode=True)),
    "set": lambda model, make, name: model.set_adapter(name),
    "set for inference": lambda model, make, name: model.set_adapter(name, inference_mode=True),
    "train": lambda model, make, name: model.set_requires_grad(name),
    "freeze": lambda model, make, name: model.set_requires_grad(name, False),
    "freeze one": lambda model, make, name: factors(model, name, make)[2].requires_grad_(False),
    "delete": lambda model, make, name: model.delete_adapter(name),
    "merge": lambda model, make, name: model.merge_adapter([name]),
    "unmerge": lambda model, make, name: model.unmerge_adapter(),
}


@pytest.mark.parametrize("seed", range(12))
def test_flags_are_those_of_lora_after_any_events(seed):
    chance = random.Random(seed)
    models = {make: adapted(make) for make in (ours, lora)}
    for step in range(12):
        known = list(models[ours].peft_config)
        event = chance.choice(list(EVENTS))
        if event == "delete" and len(known) == 1:
            continue
        name = f"adapter{step}" if event.startswith("add") else chance.choice(known)
        for make, model in models.items():
            if event == "delete":
                model.unmerge_adapter()
            EVENTS[event](model, make, name)
        assert flags(models[ours]) == flags(models[lora], lora), (step, event, name)
        assert models[ours].active_adapters == models[lora].active_adapters
