"""Save a PEFT checkpoint and load it again, without PEFT installed; `tests/parity` compares with PEFT itself."""

import json

import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from tests.torch import hosts
from tnadapt import FormatError, PlanError, SiteError
from tnadapt_torch import load_peft


def config_in(folder):
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize("family", ["lora", "lotr", "lorta", "tlora", "vera", "loha"])
def test_a_family_saved_as_lora_computes_the_same_outputs(family, tmp_path):
    model, words = hosts.toy(), hosts.words()
    hosts.adapt(model, family).save_as_lora(tmp_path / "lora", rank=99)
    again = hosts.toy()
    state = load_peft(again, tmp_path / "lora")
    assert state.adapter.spec.name == "lora"
    hosts.close(again(words), model(words))


def test_a_half_precision_adapter_is_saved_as_lora(tmp_path):
    model = hosts.toy(dtype=torch.bfloat16)
    state = hosts.adapt(model).to(torch.bfloat16)
    state.save_as_lora(tmp_path / "lora")
    again = hosts.toy()
    hosts.close(load_peft(again, tmp_path / "lora").delta("layers.1.mlp.down"), state.delta("layers.1.mlp.down"), 2e-2)


def test_the_saved_config_has_the_name_of_the_model_and_its_layout(tmp_path):
    from transformers.pytorch_utils import Conv1D

    model = nn.Sequential(Conv1D(6, 4))
    model.config = type("Config", (), {"name_or_path": "somebody/model"})()
    hosts.adapt(model, "lora", target_modules=["0"]).save_as_lora(tmp_path / "lora")
    config = config_in(tmp_path / "lora")
    assert (config["base_model_name_or_path"], config["fan_in_fan_out"]) == ("somebody/model", True)
    hosts.adapt(hosts.sequential(), "lora", target_modules=["0"]).save_as_lora(tmp_path / "plain")
    config = config_in(tmp_path / "plain")
    assert (config["base_model_name_or_path"], config["fan_in_fan_out"]) == (None, False)


def named(name, *bases, **fields):
    """A toy model whose class has this name, and which reads token ids as models of transformers do."""
    model = hosts.toy()
    plain = type(model)
    base = type(bases[0], (plain,), {}) if bases else plain
    model.__class__ = type(name, (base,), {"main_input_name": "input_ids"} | fields)
    return model


def config_of(model, folder, **words):
    hosts.adapt(model).save_as_lora(folder, **words)
    return config_in(folder)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("LlamaForCausalLM", "CAUSAL_LM"),
        ("GPT2LMHeadModel", "CAUSAL_LM"),
        ("BertModel", "FEATURE_EXTRACTION"),
        ("BertForMaskedLM", None),
        ("Toy", None),
    ],
)
def test_the_task_is_told_by_the_class_of_the_model(name, task, tmp_path):
    assert config_of(named(name), tmp_path / "own")["task_type"] == task
    assert config_of(named("Mine", name), tmp_path / "derived")["task_type"] == task
    assert config_of(named(name, main_input_name="pixel_values"), tmp_path / "pixels")["task_type"] is None
    assert config_of(named(name), tmp_path / "asked", task_type="CAUSAL_LM")["task_type"] == "CAUSAL_LM"


@pytest.mark.parametrize(("is_pair", "task"), [(True, "SEQ_2_SEQ_LM"), (False, None)])
def test_a_conditional_generation_is_of_two_sequences_only_with_an_encoder(is_pair, task, tmp_path):
    config = type("Config", (), {"is_encoder_decoder": is_pair, "name_or_path": ""})()
    assert config_of(named("T5ForConditionalGeneration", config=config), tmp_path / "a")["task_type"] == task


def test_the_head_of_a_classifier_is_saved_with_its_task(tmp_path):
    """PEFT trains it in full for this task, and loads no checkpoint without it."""
    model = named("LlamaForSequenceClassification")
    config = config_of(model, tmp_path / "a")
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert torch.equal(torch.from_numpy(tensors["base_model.model.score.weight"]), model.score.weight.data)
    model = named("LlamaForSequenceClassification")
    hosts.adapt(model, modules_to_save=["score"]).save_as_lora(tmp_path / "b")
    assert config_in(tmp_path / "b")["modules_to_save"] == ["score"]


@pytest.mark.parametrize("change", ["adapted", "tied"])
def test_a_head_that_peft_cannot_load_leaves_the_task_out(change, tmp_path):
    model = named("LlamaForSequenceClassification")
    words = {"target_modules": ["mlp.up", "score"]} if change == "adapted" else {}
    state = hosts.adapt(model, "lora", rank=1, **words)
    if change == "tied":
        model.other = model.score
    state.save_as_lora(tmp_path / "a")
    config = config_in(tmp_path / "a")
    assert (config["task_type"], config["modules_to_save"]) == (None, None)
    came = {"adapted": "an adapter on score", "tied": "one that shares a parameter"}[change]
    with pytest.raises(SiteError, match=rf"a model whose head PEFT can load for SEQ_CLS, got {came}(.|\n)*Nothing was"):
        state.save_as_lora(tmp_path / "b", task_type="SEQ_CLS")
    assert not (tmp_path / "b").exists()


def test_modules_to_save_are_saved_and_loaded(tmp_path):
    model, words = hosts.toy(), hosts.words()
    hosts.adapt(model, modules_to_save=["score"])
    with torch.no_grad():
        model.score.weight.normal_()
    model.tnadapt_default.save_as_lora(tmp_path / "lora")
    again = hosts.toy()
    before = again(words)
    state = load_peft(again, tmp_path / "lora")
    hosts.close(again(words), model(words))
    with state.disabled():
        assert torch.equal(again(words), before)


def test_a_module_to_save_that_shares_a_parameter_can_be_neither_saved_nor_loaded(tmp_path):
    model = hosts.toy()
    state = hosts.adapt(model, modules_to_save=["score"])
    state.save_as_lora(tmp_path / "lora")
    model.other = model.score
    with pytest.raises(SiteError, match=r"(?s)other.* is the same parameter.*loads score.* into a copy"):
        state.save_as_lora(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    tied = hosts.toy()
    tied.other = tied.score
    photo = hosts.photo(tied)
    with pytest.raises(FormatError, match=r"(?s)other.* is the same parameter.*a copy of score"):
        load_peft(tied, tmp_path / "lora")
    hosts.assert_same_photo(photo, hosts.photo(tied))


def test_a_checkpoint_that_does_not_fit_leaves_the_model_unchanged(tmp_path):
    hosts.adapt(hosts.toy()).save_as_lora(tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    model = hosts.toy(layers=1)
    photo = hosts.photo(model)
    with pytest.raises(FormatError, match=r"a model where layers\.1\.\S+ is a linear layer"):
        load_peft(model, tmp_path / "lora")
    key = "base_model.model.layers.0.mlp.down.lora_A.weight"
    save_file(tensors | {key: tensors[key][:, :-1].copy()}, tmp_path / "lora" / "adapter_model.safetensors")
    hosts.assert_same_photo(photo, hosts.photo(model))
    model = hosts.toy()
    photo = hosts.photo(model)
    with pytest.raises(FormatError, match=r"layers\.0\.mlp\.down has a weight of shape"):
        load_peft(model, tmp_path / "lora")
    hosts.assert_same_photo(photo, hosts.photo(model))


def test_an_adapter_that_cannot_be_saved_as_lora_raises(tmp_path):
    model = hosts.sequential()
    state = hosts.adapt(model, "lora", target_modules=["0", "2"], rank=3)
    with pytest.raises(PlanError, match=r"^2: expected an update of less than full rank, got full rank: .*3 x 7"):
        state.save_as_lora(tmp_path / "lora")
    state.detach()
    with pytest.raises(SiteError, match="got a detached one"):
        state.save_as_lora(tmp_path / "lora", rank=3)
    assert list(tmp_path.iterdir()) == []
