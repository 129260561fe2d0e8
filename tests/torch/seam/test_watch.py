"""Sites that never run are named once, after the first training forward; known ones are folded at attach."""

import copy
import warnings

import pytest
import torch
from torch import nn

from tests.torch import hosts
from tnadapt import SiteError
from tnadapt_torch import attach

IDLE = r"adapter 'default': expected every adapted layer to be called in the first training forward, got {}"


class Reading(nn.Module):
    """Calls one layer, reads the weight of another, and has a third that it does not use."""

    def __init__(self):
        super().__init__()
        self.called, self.read, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return torch.nn.functional.linear(self.called(x), self.read.weight)


def said(model, *, x=None):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        model(hosts.normal(2, 4) if x is None else x)
    return [str(warning.message) for warning in found if "adapter" in str(warning.message)]


def test_a_site_that_is_not_called_is_named_once_with_the_way_out():
    model = Reading()
    attach(model, "lora", target_modules="all-linear", rank=2)
    (message,) = said(model)
    assert message.startswith("adapter 'default': expected every adapted layer to be called in the first training")
    assert "got 2 that were not: read, unused.\n" in message
    assert "fold=True" in message
    assert said(model) == []
    assert not model._forward_hooks


@pytest.mark.parametrize("how", ["eval", "no_grad", "disabled", "merged", "folded", "after detach"])
def test_nothing_is_said_where_nothing_can_be_known(how):
    model = Reading()
    state = attach(model, "lora", target_modules=["called", "read"], rank=2, fold=how == "folded")
    if how == "eval":
        model.eval()
    elif how == "merged":
        state.merge()
    elif how == "after detach":
        state.detach()
    with torch.set_grad_enabled(how != "no_grad"):
        if how == "disabled":
            with state.disabled():
                assert said(model) == []
        else:
            assert said(model) == []
    if how in ("eval", "no_grad", "disabled"):  # the watch goes on
        assert len(said(model.train())) == 1


def test_a_site_that_ran_in_evaluation_only_is_known_to_be_called():
    model = Reading()
    attach(model, "lora", target_modules=["called"], rank=2)
    model.eval()(hosts.normal(2, 4))
    assert said(model.train()) == []


def test_only_the_sites_of_the_current_task_are_meant():
    model = Reading()
    attach(model, "lora", target_modules=["called", "read"], rank=2, tasks=["a", "b"])
    (message,) = said(model)
    assert "got 1 that was not: read." in message


@pytest.mark.parametrize("compiled", ["whole", "layers", "function"])
def test_compiled_sites_are_not_called_idle(compiled):
    torch.compiler.reset()
    model = hosts.toy()
    hosts.adapt(model, "lora")
    call = model
    if compiled == "whole":
        call = torch.compile(model, backend="eager")
    elif compiled == "layers":
        for layer in model.layers:
            layer.compile(backend="eager")
    else:

        @torch.compile(backend="eager")
        def call(words):
            return model(words) + 1

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call(hosts.words())
    assert not [each for each in found if "expected every adapted layer" in str(each.message)]
    torch.compiler.reset()


def test_a_copy_watches_for_itself():
    model = Reading()
    attach(model, "lora", target_modules=["called", "read"], rank=2)
    twin = copy.deepcopy(model)
    assert len(said(model)) == 1
    assert len(said(twin)) == 1


class MambaMixer(nn.Module):
    """Has the name and the ways of the mixer of transformers."""

    def __init__(self):
        super().__init__()
        self.x_proj, self.dt_proj = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.x_proj(x) @ self.dt_proj.weight.T


def test_a_known_weight_that_is_only_read_is_folded():
    model = nn.Sequential(MambaMixer())
    state = attach(model, "lora", target_modules=["x_proj", "dt_proj"], rank=2)
    assert said(model) == []
    hosts.wake(state)
    model(hosts.normal(2, 4)).sum().backward()
    assert all(p.grad.norm() > 0 for p in state.parameters())


@pytest.mark.parametrize("more", [{"dropout": 0.1}, {}])
def test_a_known_weight_that_cannot_be_folded_is_refused(more):
    model = nn.Sequential(MambaMixer())
    if not more:
        model.bfloat16()
    before = hosts.photo(model)
    with pytest.raises(SiteError, match=r"^0.dt_proj: expected a layer that the model calls, got one whose weight"):
        attach(model, "lora", target_modules=["dt_proj"], rank=2, **more)
    hosts.assert_same_photo(before, hosts.photo(model))
    attach(model, "lora", target_modules=["x_proj"], rank=2, **more)  # called, where no fused kernel is installed


TRANSFORMERS = {
    "mamba": ("MambaConfig", {"state_size": 4}, ["dt_proj", "x_proj", "out_proj", "in_proj"]),
    "jamba": (
        "JambaConfig",
        {"use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1, "num_key_value_heads": 2},
        ["dt_proj"],
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_every_site_of_a_state_space_model_is_trained(kind):
    transformers = pytest.importorskip("transformers")
    config, sizes, targets = TRANSFORMERS[kind]
    small = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"intermediate_size": 32, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(getattr(transformers, config)(**small, **sizes))
    state = attach(model, "lora", target_modules=targets, rank=1)
    hosts.wake(state, size=0.1)
    model(torch.arange(6)[None]).last_hidden_state.square().sum().backward()
    still = [name for name, p in state.named_parameters() if p.grad is None or p.grad.norm() == 0]
    assert still == []
