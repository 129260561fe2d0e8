"""The seed of an adapter under PEFT: from torch's generator, kept in files and state dicts, taken over by a load."""

import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings from importing PEFT
    from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from tests.peft.models import SPECS, close, config, differs, llama, logits, wake
from tnadapt import FormatError, families
from tnadapt_torch.peft import TnConfig

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SEED = "base_model.tnadapt_seed"
CENTERED = TnConfig(spec=families.quanta(order=2), target_modules=["q_proj"])


def state_of(model, adapter="default"):
    return model.base_model.states()[adapter]


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def drawn(name):
    """Make a config without a seed, for a spec with factors that are drawn and not stored, or a centered one."""
    return CENTERED if name == "quanta" else config(name, seed=None)


def fresh(name, seed):
    """Make an adapted model whose seed torch determines; `llama` seeds torch, too."""
    host = llama()
    torch.manual_seed(seed)
    return get_peft_model(host, drawn(name))


unseeded = pytest.mark.parametrize("name", ["vera", "tera", "own", "quanta"])


def test_torch_determines_the_seed():
    models = []
    for seed in (1, 1, 2):
        host = llama()  # it seeds torch
        torch.manual_seed(seed)
        models.append(get_peft_model(host, config("lotr", seed=None)))
    first, same, other = (state_of(model) for model in models)
    assert equal(first.params(), same.params())
    assert first.adapter.seed == same.adapter.seed != other.adapter.seed
    assert not equal(first.params(), other.params())


def test_two_adapters_of_one_config_start_differently():
    told = config("lotr", seed=None)
    model = get_peft_model(llama(), told)
    model.add_adapter("second", told)
    assert told.seed is None
    assert not equal(state_of(model).params(), state_of(model, "second").params())


@pytest.mark.parametrize("how", ["variable", "group"])
def test_several_processes_draw_the_same_values(how, monkeypatch):
    if how == "variable":
        monkeypatch.setenv("WORLD_SIZE", "2")
    else:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert state_of(get_peft_model(llama(), config("lotr", seed=None))).adapter.seed == 0
    assert state_of(get_peft_model(llama(), config("lotr", seed=7))).adapter.seed == 7


@unseeded
def test_a_file_keeps_the_seed(name, tmp_path):
    model = fresh(name, 1)
    wake(state_of(model))
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(llama(), tmp_path)
    assert state_of(back).adapter == state_of(model).adapter
    assert torch.equal(logits(back), logits(model))


@unseeded
def test_a_state_dict_brings_its_seed_along(name):
    model = fresh(name, 1)
    wake(state_of(model))
    values = get_peft_model_state_dict(model)
    assert values[SEED] == state_of(model).adapter.seed
    other = fresh(name, 2)
    assert state_of(other).adapter.seed != state_of(model).adapter.seed
    told = set_peft_model_state_dict(other, values)
    assert not told.unexpected_keys
    assert state_of(other).adapter == state_of(model).adapter
    assert torch.equal(logits(other), logits(model))
    again = fresh(name, 3)
    set_peft_model_state_dict(again, get_peft_model_state_dict(other))
    assert torch.equal(logits(again), logits(model))


@unseeded
def test_a_checkpoint_is_loaded_into_an_adapter_with_another_seed(name, tmp_path):
    model = fresh(name, 1)
    wake(state_of(model))
    model.save_pretrained(tmp_path)
    resumed = fresh(name, 2)
    assert state_of(resumed).adapter.seed != state_of(model).adapter.seed
    resumed.load_adapter(tmp_path, "default", is_trainable=True)  # as a Trainer does that resumes
    assert torch.equal(logits(resumed), logits(model))
    resumed.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(PeftModel.from_pretrained(llama(), tmp_path / "again")), logits(model))


def test_a_spec_without_drawn_values_needs_no_seed():
    assert SEED not in get_peft_model_state_dict(get_peft_model(llama(), config("lotr")))


def test_a_state_dict_without_its_seed_raises_unless_the_seed_is_given():
    model = get_peft_model(llama(), config("vera", seed=4))
    wake(state_of(model))
    values = {key: value for key, value in get_peft_model_state_dict(model).items() if key != SEED}
    other = get_peft_model(llama(), config("vera", seed=None))
    wanted = logits(other)
    with pytest.raises(FormatError, match="expected the seed of the values that it does not store, got none"):
        set_peft_model_state_dict(other, values)
    assert torch.equal(logits(other), wanted)
    other = get_peft_model(llama(), config("vera", seed=4))
    set_peft_model_state_dict(other, values)
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize("seed", [torch.tensor(-1), torch.tensor(1.0), torch.tensor([1])])
def test_a_damaged_seed_raises(seed):
    model = get_peft_model(llama(), config("vera"))
    wanted = logits(model)
    with pytest.raises(FormatError, match=rf"expected a seed under {SEED}"):
        set_peft_model_state_dict(model, get_peft_model_state_dict(model) | {SEED: seed})
    assert torch.equal(logits(model), wanted)


def test_a_frozen_factor_that_was_changed_is_kept(tmp_path):
    model = fresh("vera", 1)
    wake(state_of(model))
    with torch.no_grad():
        state_of(model).params()["B"].mul_(1.5)
    model.save_pretrained(tmp_path)
    differs(logits(model), logits(get_peft_model(llama(), config("vera", seed=None))))
    close(logits(PeftModel.from_pretrained(llama(), tmp_path)), logits(model), 0.0)
    resumed = fresh("vera", 2)
    resumed.load_adapter(tmp_path, "default")
    close(logits(resumed), logits(model), 0.0)


@pytest.mark.parametrize("name", SPECS)
def test_a_config_of_one_model_serves_another(name, tmp_path):
    told = config(name, seed=None)
    first = get_peft_model(llama(), told)
    first.save_pretrained(tmp_path / "first")
    second = get_peft_model(llama(num_hidden_layers=3), told)
    assert "adapter" not in {key for key, value in told.to_dict().items() if value is not None}
    wake(state_of(second))
    second.save_pretrained(tmp_path / "second")
    assert torch.equal(
        logits(PeftModel.from_pretrained(llama(num_hidden_layers=3), tmp_path / "second")), logits(second)
    )
