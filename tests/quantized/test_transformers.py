"""Models that transformers loads quantized on a CPU: the plain binding, the bridge to PEFT, and PEFT's own LoRA."""

import importlib.util
import warnings

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="PEFT is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings from importing PEFT
    import peft
    from transformers import (
        AutoModelForCausalLM,
        BitsAndBytesConfig,
        LlamaConfig,
        LlamaForCausalLM,
        QuantoConfig,
        TorchAoConfig,
        Trainer,
        TrainingArguments,
    )

from tnadapt import SiteError, families
from tnadapt_torch import attach, load, load_peft
from tnadapt_torch.peft import TnConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of the libraries

CONFIG = LlamaConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=64,
    max_position_embeddings=64,
)
IDS = torch.randint(0, 64, (2, 7), generator=torch.Generator().manual_seed(0))


def torchao_int8():
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


KINDS = {
    "4 bit": (
        "bitsandbytes",
        lambda: BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
    ),
    "8 bit": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_8bit=True)),
    "torchao": ("torchao", torchao_int8),
    "quanto": ("optimum.quanto", lambda: QuantoConfig(weights="int8")),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save the small model once, in full precision."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(CONFIG).save_pretrained(place)
    return place


def loaded(folder, kind):
    package, config = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(package, reason=f"{package} is not installed; `make quantized` installs it")
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config(), device_map={"": "cpu"}, dtype=torch.float32
    )


def wake(state, seed=7):
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in state.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random))
    return state


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(IDS).logits


def close(found, wanted, tolerance=1e-5):
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@every_kind
def test_a_loaded_model_is_adapted_trained_saved_and_loaded(folder, kind, tmp_path):
    model = loaded(folder, kind)
    bare = logits(model)
    state = attach(model, families.lotr(), target_modules="all-linear", rank=2, seed=0)
    assert len(state.weights) == 14
    assert torch.equal(logits(model), bare)
    model.train()
    optimizer = torch.optim.AdamW(state.parameter_groups(lr=1e-2))
    losses = []
    for _ in range(4):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    state.save(tmp_path / "a")
    again = loaded(folder, kind)
    load(again, tmp_path / "a")
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(SiteError, match=r"q_proj: expected a plain floating-point matrix to merge into"):
        state.merge()
    state.detach()
    assert torch.equal(logits(model), bare)


@every_kind
def test_starting_values_of_a_loaded_model(folder, kind):
    model = loaded(folder, kind)
    bare = logits(model)
    state = attach(model, families.pissa(), target_modules=["q_proj", "down_proj"], rank=2, seed=0)
    close(logits(model), bare)
    assert all(factor.any() for factor in state.parameters())


@every_kind
def test_a_file_of_a_quantized_model_merges_into_the_model_in_full_precision(folder, kind, tmp_path):
    state = wake(attach(loaded(folder, kind), families.lora(), target_modules=["q_proj"], rank=2, seed=0))
    state.save(tmp_path / "a")
    whole = LlamaForCausalLM.from_pretrained(folder)
    other = load(whole, tmp_path / "a")
    unmerged = logits(whole)
    other.merge()
    close(logits(whole), unmerged)
    other.detach()
    close(logits(whole), unmerged)


@pytest.mark.parametrize("kind", ["4 bit", "8 bit"])
def test_a_model_prepared_by_peft_trains_with_gradient_checkpointing(folder, kind):
    grads = []
    for is_saving in (False, True):
        model = peft.prepare_model_for_kbit_training(loaded(folder, kind), use_gradient_checkpointing=is_saving)
        state = wake(attach(model.train(), families.lora(), target_modules=["q_proj", "down_proj"], rank=2, seed=0))
        model(input_ids=IDS, labels=IDS).loss.backward()
        grads.append([factor.grad for factor in state.parameters()])
    for found, wanted in zip(*grads, strict=True):
        close(found, wanted)
        assert wanted.any()


@pytest.mark.parametrize("kind", ["4 bit", "8 bit"])
def test_layers_dequantized_after_attach_are_noticed(folder, kind):
    model = loaded(folder, kind)
    state = attach(model, families.lora(), target_modules=["q_proj"], rank=2, seed=0)
    model.dequantize()
    with pytest.raises(SiteError, match=r"layers\.0\.self_attn\.q_proj: expected the weight .*, got another Linear\."):
        state.merge()


@pytest.mark.parametrize("kind", ["4 bit", "8 bit"])
def test_a_dequantized_model_is_merged_into(folder, kind):
    model = loaded(folder, kind).dequantize()
    state = wake(attach(model, families.lora(), target_modules=["q_proj"], rank=2, seed=0))
    unmerged = logits(model)
    state.merge()
    close(logits(model), unmerged, 1e-5 if model.dtype == torch.float32 else 2e-2)


@every_kind
def test_peft_loads_the_lora_of_a_quantized_model(folder, kind, tmp_path):
    model = loaded(folder, kind)
    state = wake(attach(model, families.lotr(), target_modules=["q_proj", "up_proj"], rank=2, seed=0))
    state.save_as_lora(tmp_path / "lora")
    other = peft.PeftModel.from_pretrained(loaded(folder, kind), tmp_path / "lora")
    close(logits(other), logits(model))


@every_kind
def test_the_lora_that_peft_trained_on_a_quantized_model_is_loaded(folder, kind, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    other = peft.get_peft_model(loaded(folder, kind), config)
    other.save_pretrained(tmp_path / "lora")
    model = loaded(folder, kind)
    load_peft(model, tmp_path / "lora")
    close(logits(model), logits(other))


@every_kind
@pytest.mark.parametrize("family", ["lora", "pissa"])
def test_the_bridge_to_peft(folder, kind, family, tmp_path):
    config = TnConfig(spec=getattr(families, family)(), rank=2, seed=0, target_modules=["q_proj", "up_proj"])
    plain = attach(loaded(folder, kind), config.spec, target_modules=["q_proj", "up_proj"], rank=2, seed=0)
    model = peft.get_peft_model(loaded(folder, kind), config)
    state = model.base_model.states()["default"]
    for key, value in plain.params().items():
        assert torch.equal(state.params()[key].cpu(), value)
    wake(state)
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert all(factor.grad is not None for factor in state.parameters())
    before = logits(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(SiteError, match=r"q_proj: expected a plain floating-point matrix to merge into"):
            merge()
    assert torch.equal(logits(model), before)
    model.save_pretrained(tmp_path / "a")
    again = peft.PeftModel.from_pretrained(loaded(folder, kind), tmp_path / "a")
    assert torch.equal(logits(again), before)


@pytest.mark.parametrize("kind", ["4 bit", "8 bit"])
def test_the_trainer_takes_a_quantized_model_through_the_bridge_only(folder, kind, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda garbage_collection=False: None)
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, learning_rate=1e-2, report_to=[], save_strategy="no", use_cpu=True
    )
    model = loaded(folder, kind)
    attach(model, families.lora(), target_modules=["q_proj"], rank=2, seed=0)
    with pytest.raises(ValueError, match="purely quantized models"):
        Trainer(model, arguments, train_dataset=rows)
    model = peft.get_peft_model(loaded(folder, kind), TnConfig(spec="lora", rank=2, target_modules=["q_proj"]))
    state = model.base_model.states()["default"]
    before = {key: value.detach().clone() for key, value in state.params().items()}
    Trainer(model, arguments, train_dataset=rows).train()
    assert any(not torch.equal(value, before[key]) for key, value in state.params().items())


def test_the_packages_of_the_extra_are_there_or_not_together():
    found = [importlib.util.find_spec(name) is not None for name in ("bitsandbytes", "torchao", "hqq")]
    if not any(found):
        pytest.skip("none is installed; `make quantized` installs them")
    assert all(found)
