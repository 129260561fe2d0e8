"""`save_pretrained` of a model that holds an adapted one: the adapter is written beside, or a warning says why not."""

import sys
import warnings

import pytest
import torch
import transformers
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file, load_model, save_model
from torch import nn

from tests.peft.models import attached, bert, close, config, differs, gpt2, llama, logits, wake, words
from tnadapt import families
from tnadapt_torch import attach, load
from tnadapt_torch._state import enclosing

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings from importing PEFT
    from peft import LoraConfig, PeftModel, get_peft_model

FILE = "tnadapt_default.safetensors"
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning:transformers")


@pytest.fixture(autouse=True)
def strict():
    """Let nothing warn but the tests that expect it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("tnadapt*"))


def with_lora(model, target="o_proj") -> PeftModel:
    return get_peft_model(model, LoraConfig(target_modules=[target], r=2, init_lora_weights=False))


@pytest.mark.parametrize("fold", [False, True])
def test_an_adapter_inside_a_model_of_peft_is_written_beside(fold, tmp_path):
    model = with_lora(attached(llama(), "lora", fold=fold))
    model.save_pretrained(tmp_path)
    assert names(tmp_path) == [FILE]
    host = llama()
    load(host, tmp_path / FILE)
    differs(logits(PeftModel.from_pretrained(llama(), tmp_path)), logits(model))
    close(logits(PeftModel.from_pretrained(host, tmp_path)), logits(model))


def test_a_class_that_is_imported_after_the_attach_is_wrapped_before_a_model_of_it_is_made(tmp_path, monkeypatch):
    class Outer(nn.Module):
        def __init__(self, model) -> None:
            super().__init__()
            self.part = model

        def save_pretrained(self, folder):
            folder.mkdir()

    monkeypatch.setattr(enclosing, "OWNERS", {"a_late_library": "Outer"})
    monkeypatch.setattr(enclosing, "_wrapped", {})
    model = attached(llama(), "lora")
    library = type(sys)("a_late_library")
    library.Outer = Outer
    monkeypatch.setitem(sys.modules, "a_late_library", library)
    outer = Outer(model)
    outer.save_pretrained(tmp_path / "out")
    assert names(tmp_path / "out") == [FILE]


def test_what_peft_does_not_save_is_told(tmp_path):
    base = attached(llama(), "lora")
    model = with_lora(base)
    base.tnadapt_default.merge()
    with pytest.warns(UserWarning, match=r"(?s)'default': it was not saved: it is merged into weights that PEFT does"):
        model.save_pretrained(tmp_path / "merged")
    base = attached(llama(), "lora")
    base.add_adapter(LoraConfig(target_modules=["o_proj"], r=2))
    base.save_pretrained(tmp_path / "injected")
    assert names(tmp_path / "injected") == [FILE]
    base.tnadapt_default.merge()
    with pytest.warns(UserWarning, match=r"(?s)'default': it was not saved: it is merged into weights that PEFT does"):
        base.save_pretrained(tmp_path / "merged")

    base = attached(llama(), "lotr")
    model = with_lora(base, "q_proj")  # which replaces the adapted layers
    with pytest.warns(UserWarning, match=r"(?s)'default': it was not saved: .*q_proj: expected the weight"):
        model.save_pretrained(tmp_path / "replaced")


def test_an_adapter_of_the_bridge_is_saved_by_peft_alone(tmp_path):
    get_peft_model(llama(), config("lora")).save_pretrained(tmp_path)
    assert names(tmp_path) == []


def test_an_adapter_beside_one_of_the_bridge_is_written_beside_it(tmp_path):
    base = llama()
    wake(attach(base, families.lora(), target_modules=["o_proj"], rank=2))
    model = get_peft_model(base, config("lotr"))
    wake(model.base_model.states()["default"])
    model.save_pretrained(tmp_path)
    assert names(tmp_path) == [FILE]
    host = PeftModel.from_pretrained(llama(), tmp_path)
    load(host.base_model.model, tmp_path / FILE)  # PEFT would warn of the factors that it does not find, if first
    close(logits(host), logits(model))


def pair() -> transformers.EncoderDecoderModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 16}
    one = transformers.BertConfig(**sizes | heads)
    other = transformers.BertConfig(**sizes | heads, is_decoder=True, add_cross_attention=True)
    return transformers.EncoderDecoderModel(
        encoder=transformers.BertModel(one), decoder=transformers.BertLMHeadModel(other)
    )


def answers(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=words(), decoder_input_ids=words()).logits


@pytest.mark.parametrize("fold", [False, True])
def test_an_adapter_of_a_part_is_written_beside_the_whole(fold, tmp_path):
    model = pair()  # there before the attach
    wake(attach(model.encoder, families.lora(), target_modules=["query"], rank=2, fold=fold))
    model.save_pretrained(tmp_path)
    plain, found = transformers.EncoderDecoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["unexpected_keys"]
    assert not found["missing_keys"]
    load(plain.encoder, tmp_path / FILE)
    close(answers(plain), answers(model))

    wake(attach(model.decoder, families.lora(), target_modules=["query"], rank=2))
    with pytest.warns(UserWarning, match=r"'default': it was not saved: another of its name"):
        model.save_pretrained(tmp_path)
    assert any("decoder.tnadapt_default" in key for key in load_file(tmp_path / "model.safetensors"))

    model.encoder.tnadapt_default.merge()
    model.save_pretrained(tmp_path)  # the file is now that of the other one
    plain = transformers.EncoderDecoderModel.from_pretrained(tmp_path)
    load(plain.decoder, tmp_path / FILE)
    close(answers(plain), answers(model))


def test_a_whole_whose_method_calls_those_of_its_parts_writes_the_adapter_once(tmp_path):
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = llama()

        def save_pretrained(self, folder):
            self.part.save_pretrained(folder / "part")

    model = Whole()
    wake(attach(model, families.lora(), target_modules=["q_proj"], rank=2))
    model.save_pretrained(tmp_path)
    assert names(tmp_path) == [FILE]
    assert names(tmp_path / "part") == []
    other = Whole()
    load(other, tmp_path / FILE)
    close(logits(other.part), logits(model.part))


class Published(nn.Module, PyTorchModelHubMixin):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def forward(self, x):
        return self.part(x)


def test_a_model_that_the_hub_gives_the_method_has_the_adapter_beside_it(tmp_path):
    model = Published()
    wake(attach(model.part, families.lora(), target_modules=["0"], rank=2))
    model.save_pretrained(tmp_path)
    other = Published.from_pretrained(tmp_path, strict=True)
    load(other.part, tmp_path / FILE)
    close(other(torch.ones(2, 4)), model(torch.ones(2, 4)))


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_the_weights_of_save_model_need_an_equal_attach(make, tmp_path):
    """`safetensors.torch.save_model` and `accelerator.save_model` write the state dict, with every factor."""
    models = [make() for _ in range(2)]
    targets = {"llama": ["q_proj"], "gpt2": ["c_attn"], "bert": ["query"]}[make.__name__]
    states = [attach(model, families.vera(), target_modules=targets, rank=2, seed=3) for model in models]
    wake(states[0])
    save_model(models[0], tmp_path / "model.safetensors")
    load_model(models[1], tmp_path / "model.safetensors", strict=True)
    close(logits(models[1]), logits(models[0]), 0.0)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*tnadapt_default"):
        load_model(make(), tmp_path / "model.safetensors", strict=True)
