"""`save_pretrained` of an adapted model, whatever the signature of the method is and whatever it is given."""

import inspect
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.peft.models import attached, close, llama, logits, wake
from tests.peft.test_pretrained import FILE, again
from tnadapt import families
from tnadapt_torch import attach, load


@pytest.fixture(autouse=True)
def strict():
    """Let nothing warn but the tests that expect it; transformers' own messages are logged, not warned."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def all_passed_on(save):
    def save_pretrained(self, *args, **kwargs):
        return save(self, *args, **kwargs)

    return save_pretrained


def the_rest_passed_on(save):
    def save_pretrained(self, folder, *args, **kwargs):
        return save(self, folder, *args, **kwargs)

    return save_pretrained


def named_passed_on(save):
    def save_pretrained(self, save_directory, **kwargs):
        return save(self, save_directory, **kwargs)

    return save_pretrained


def with_method(make):
    """Make an adapted model of a subclass that has a method of its own, which calls the one of the base class."""
    model = attached(llama(), "lora")
    base = type(model)
    model.__class__ = type("Own", (base,), {"save_pretrained": make(base.save_pretrained)})
    return model


@pytest.mark.parametrize("make", [all_passed_on, the_rest_passed_on, named_passed_on])
def test_a_method_may_take_its_arguments_as_it_likes(make, tmp_path):
    model = with_method(make)
    model.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "given", state_dict=model.state_dict())
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    if make is not named_passed_on:
        model.save_pretrained(tmp_path / "given", True, model.state_dict())
        model.save_pretrained(tmp_path / "other", False)
    if make is not the_rest_passed_on:
        model.save_pretrained(save_directory=tmp_path / "named")
        assert (tmp_path / "named" / FILE).exists()
    assert not (tmp_path / "other" / FILE).exists()
    wanted = load_file(tmp_path / "plain" / "model.safetensors").keys()
    assert load_file(tmp_path / "given" / "model.safetensors").keys() == wanted
    assert not any(key.startswith("tnadapt") for key in wanted)
    host = again(tmp_path / "given")
    load(host, tmp_path / "given" / FILE)
    close(logits(host), logits(model))


def test_the_signature_is_that_of_the_method():
    """A pipeline of diffusers reads it, and passes `variant` and others on only if they are there."""
    model = llama()
    wanted = inspect.signature(model.save_pretrained)
    attach(model, families.lora(), target_modules=["q_proj"], rank=2)
    assert inspect.signature(model.save_pretrained) == wanted
    assert {"variant", "max_shard_size"} < set(inspect.signature(model.save_pretrained).parameters)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)


def small(save) -> nn.Module:
    model = type("Own", (Small,), {"save_pretrained": save})()
    wake(attach(model, families.lora(), target_modules=["layer"], rank=2))
    return model


def test_a_method_that_has_no_folder_is_called_and_the_adapter_is_named(tmp_path):
    calls = []
    told = r"(?s)'default': it was not saved: expected a folder to save the model in, got {}\..*state\.save\(path\)"
    with pytest.warns(UserWarning, match=told.format("none")):
        small(lambda self: calls.append(set(self.state_dict()))).save_pretrained()
    assert any(key.startswith("tnadapt_default") for key in calls[0])  # they have no file of their own
    with pytest.warns(UserWarning, match=told.format("far:/away")):
        small(lambda self, where: calls.append(where)).save_pretrained("far:/away")
    assert calls[1:] == ["far:/away"]

    small(lambda self, store, folder: calls.append(store)).save_pretrained({"a": 1}, tmp_path)
    assert calls[2:] == [{"a": 1}]
    assert (tmp_path / FILE).exists()


def test_a_default_folder_is_found(tmp_path, monkeypatch):
    def save(self, save_directory="out"):
        Path(save_directory).mkdir()

    monkeypatch.chdir(tmp_path)
    small(save).save_pretrained()
    assert (tmp_path / "out" / FILE).exists()


def test_the_values_of_a_given_state_dict_are_those_of_the_file(tmp_path):
    """Such as the means over the last steps: the file of the adapter had the values of the model."""
    model, other = (attached(llama(), "lora", modules_to_save=["norm"]) for _ in range(2))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.5 * parameter.requires_grad)
    model.save_pretrained(tmp_path, state_dict=other.state_dict())
    host = again(tmp_path)
    load(host, tmp_path / FILE)
    close(logits(host), logits(other))

    state = model.tnadapt_default
    with state.disabled():  # the state dict has the original modules now, and the file those that are trained
        model.save_pretrained(tmp_path, state_dict=model.state_dict())
    load(fresh := llama(), tmp_path / FILE)
    close(logits(fresh), logits(model))
    model.save_pretrained(tmp_path, state_dict=llama().state_dict())  # has no values of the adapter
    load(fresh := llama(), tmp_path / FILE)
    close(logits(fresh), logits(model))


def test_given_values_that_do_not_fit_are_told(tmp_path):
    model = attached(llama(), "lora")
    values = {key: value[:1] if ".factors." in key else value for key, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match=r"(?s)'default': it was not saved: .*q_proj\.A.*: expected shape"):
        model.save_pretrained(tmp_path, state_dict=values)
    assert not (tmp_path / FILE).exists()
