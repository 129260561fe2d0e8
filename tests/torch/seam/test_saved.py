"""Changes after attach: of modules_to_save, of what they store, and of the place of the adapter."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.thorough import IS_THOROUGH
from tests.torch import hosts
from tnadapt import SiteError
from tnadapt_torch import load


def replaced(model):
    model.score = nn.Linear(16, 3)


def removed(model):
    model.score = None


def resized(model):
    model.score.weight, model.score.bias = nn.Parameter(torch.zeros(5, 16)), nn.Parameter(torch.zeros(5))


def normed(model):
    parametrizations.weight_norm(model.score)


OPERATIONS = {
    "save": lambda state, folder: state.save(folder / "a.safetensors"),
    "save_as_lora": lambda state, folder: state.save_as_lora(folder / "lora"),
    "merge": lambda state, folder: state.merge(),
    "norms": lambda state, folder: state.norms(),
    "disabled": lambda state, folder: state.disabled().__enter__(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("change", [replaced, removed, resized, normed])
def test_a_changed_module_is_named(change, operation, tmp_path):
    model = hosts.toy()
    state = hosts.adapt(model, "lora", modules_to_save=["score"])
    change(model)
    before = hosts.photo(model)
    with pytest.raises(SiteError, match=r"^score[a-z0-9.]*: expected what modules_to_save named when the adapter was"):
        OPERATIONS[operation](state, tmp_path)
    assert list(tmp_path.iterdir()) == []
    hosts.assert_same_photo(before, hosts.photo(model))


@pytest.mark.parametrize("change", [replaced, resized, normed])
def test_a_changed_module_stays_as_it_is_at_detach(change):
    model = hosts.toy()
    state = hosts.adapt(model, "lora", modules_to_save=["score"])
    change(model)
    x = hosts.normal(2, 16)
    wanted = model.score(x)
    state.detach()
    assert torch.equal(model.score(x), wanted)


def test_what_a_module_stores_beside_tensors_is_left_out(tmp_path):
    class Head(nn.Linear):
        def get_extra_state(self):
            return {"steps": 3}

        def set_extra_state(self, state):
            pass

    model = hosts.toy()
    model.score = Head(16, 3)
    state = hosts.adapt(model, "lora", modules_to_save=["score"])
    with torch.no_grad():
        model.score.weight.add_(1)
    wanted = model(hosts.words())
    state.save(tmp_path / "a.safetensors")
    state.detach()
    load(model, tmp_path / "a.safetensors")
    hosts.close(model(hosts.words()), wanted)


def test_a_module_with_a_compiled_part_has_the_keys_of_the_plain_one(tmp_path):
    model = hosts.toy()
    state = hosts.adapt(model, "lora", target_modules=["q_proj"], modules_to_save=["layers.0.mlp"])
    model.layers[0].mlp.up = torch.compile(model.layers[0].mlp.up, backend="eager")
    with torch.no_grad():
        model.layers[0].mlp.up.weight.add_(1)
        wanted = model(hosts.words())
        with state.disabled():
            assert not torch.allclose(model(hosts.words()), wanted)
    state.save(tmp_path / "a.safetensors")
    other = hosts.toy()
    load(other, tmp_path / "a.safetensors")
    hosts.close(other(hosts.words()), wanted)


def test_the_checkpoint_functions_of_torch_distributed_find_every_key():
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    model = hosts.toy()
    state = hosts.adapt(model, "lotr", modules_to_save=["score"])
    other = hosts.toy()
    again = hosts.wake(hosts.adapt(other, "lotr", modules_to_save=["score"]), seed=9)
    with torch.no_grad():
        model.score.weight.add_(1)
    for one in (state, again):
        one.enabled = False
    set_model_state_dict(other, get_model_state_dict(model))
    for one in (state, again):
        one.enabled = True
    hosts.close(other(hosts.words()), model(hosts.words()))
    state.merge()
    wanted = model(hosts.words())
    set_model_state_dict(model, get_model_state_dict(model))
    assert torch.equal(model(hosts.words()), wanted)


def dropped(model):
    del model[1]  # nn.Sequential numbers its children anew


def forgotten(model):
    del model.tnadapt_default


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("change", [dropped, forgotten])
def test_detach_is_complete_where_the_adapter_lost_its_place(change, fold):
    model = hosts.sequential()
    wanted = {name: (type(module), len(module._parameters)) for name, module in model[0].named_modules()}
    state = hosts.adapt(model, "lora", target_modules=["0"], fold=fold)
    change(model)
    state.detach()
    assert {name: (type(module), len(module._parameters)) for name, module in model[0].named_modules()} == wanted
    assert not any(module is state for module in model.modules())
    assert all(parameter.requires_grad for parameter in model[0].parameters())


def test_a_load_that_fails_at_a_saved_module_leaves_nothing(tmp_path):
    model = hosts.toy()
    hosts.adapt(model, "lora", modules_to_save=["score"]).save(tmp_path / "a.safetensors")
    model = hosts.toy()
    model.score.weight = nn.Parameter(torch.ones(3, 1).expand(3, 16))  # torch does not write to such a tensor
    before = hosts.photo(model)
    with pytest.raises(RuntimeError, match="refers to a single memory location"):
        load(model, tmp_path / "a.safetensors")
    hosts.assert_same_photo(before, hosts.photo(model))


def test_a_module_without_values_cannot_be_trained_in_full(tmp_path):
    hosts.adapt(hosts.toy(), "lora", modules_to_save=["score"]).save(tmp_path / "a.safetensors")
    with torch.device("meta"):
        model = hosts.toy()
    before = hosts.photo(model)
    for act in (
        lambda: load(model, tmp_path / "a.safetensors"),
        lambda: hosts.adapt(model, "lora", modules_to_save=["score"]),
    ):
        with pytest.raises(
            SiteError, match=r"^score: expected a module of modules_to_save with its values, got .* meta"
        ):
            act()
    assert hosts.photo(model)["kinds"] == before["kinds"]


def test_blocks_of_disabled_end_in_any_order():
    """Those of threads and of generators do not nest."""
    model = hosts.toy()
    base = model(hosts.words())
    state = hosts.adapt(model, "lora", modules_to_save=["score"])
    with torch.no_grad():
        model.score.weight.add_(1)
    adapted = model(hosts.words())
    first, second = state.disabled(), state.disabled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(model(hosts.words()), base)
    second.__exit__(None, None, None)
    assert torch.equal(model(hosts.words()), adapted)


@pytest.mark.parametrize("family", ["lora", "lotr", "vera"] if IS_THOROUGH else ["vera"])  # factors, and buffers
def test_an_adapter_that_was_made_in_inference_mode_can_be_trained(family):
    model = hosts.toy()
    with torch.inference_mode():
        state = hosts.adapt(model, family)
    model(hosts.words()).sum().backward()
    assert all(parameter.grad is not None for parameter in state.parameters())
    eager = [parameter.grad.clone() for parameter in state.parameters()]
    model.zero_grad()
    torch.compile(model, backend="aot_eager")(hosts.words()).sum().backward()
    for parameter, wanted in zip(state.parameters(), eager, strict=True):
        hosts.close(parameter.grad, wanted, 1e-4)
