"""Changes after attach: of modules_to_save, of what they store, and of the place of the adapter."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

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
    with state.disabled():
        pass
    state.save(tmp_path / "a.safetensors")
    load(hosts.toy(), tmp_path / "a.safetensors")


def test_the_checkpoint_functions_of_torch_distributed_find_every_key():
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    model = hosts.toy()
    state = hosts.adapt(model, "lotr", modules_to_save=["score"])
    with state.disabled():
        set_model_state_dict(model, get_model_state_dict(model))
    state.merge()
    set_model_state_dict(model, get_model_state_dict(model))


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
