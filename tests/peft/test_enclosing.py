"""`save_pretrained` of a model that holds an adapted one: the adapter is written beside, or a warning says why not."""

import io
import sys
import types
import warnings

import accelerate
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


def library(name, monkeypatch) -> type[nn.Module]:
    """Return a class of a library that is not imported yet, whose models hold others and save nothing of them."""

    class Outer(nn.Module):
        def __init__(self, model) -> None:
            super().__init__()
            self.part = model

        def save_pretrained(self, folder):
            folder.mkdir()

    Outer.__module__ = name
    monkeypatch.setattr(enclosing, "OWNERS", {name: "Outer"})
    monkeypatch.setattr(enclosing, "LOADERS", {})
    monkeypatch.setattr(enclosing, "_wrapped", {})
    return Outer


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
    outer = library("a_late_library", monkeypatch)
    model = attached(llama(), "lora")
    monkeypatch.setitem(sys.modules, outer.__module__, types.SimpleNamespace(Outer=outer))
    outer(model).save_pretrained(tmp_path / "out")
    assert names(tmp_path / "out") == [FILE]


def test_an_adapted_model_of_a_pickle_is_written_beside_in_a_new_process(tmp_path, monkeypatch):
    """A new process has wrapped no class, and waits for none."""
    file = io.BytesIO()
    torch.save(attached(llama(), "lora"), file)
    file.seek(0)

    outer = library("another_library", monkeypatch)
    monkeypatch.setitem(sys.modules, outer.__module__, types.SimpleNamespace(Outer=outer))
    monkeypatch.setattr(enclosing, "_hooks", [])
    try:
        outer(torch.load(file, weights_only=False)).save_pretrained(tmp_path / "out")
        assert len(enclosing._hooks) == 1
    finally:
        for hook in enclosing._hooks:
            hook.remove()
    assert names(tmp_path / "out") == [FILE]


def classifier(model) -> transformers.LlamaForSequenceClassification:
    torch.manual_seed(0)
    whole = transformers.LlamaForSequenceClassification(model.config)
    whole.config.pad_token_id = 0
    whole.model = model.model
    return whole


@pytest.mark.parametrize("fold", [False, True])
def test_a_model_that_took_a_part_of_an_adapted_one_is_told(fold, tmp_path):
    """The part computes with the updates, and the adapter is a child of the model that it was taken from."""
    model = attached(llama(), "lora", fold=fold)
    with pytest.warns(UserWarning, match=r"'default': it was not saved: it is on another model with a part of this"):
        classifier(model).save_pretrained(tmp_path)
    _, found = transformers.LlamaForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["unexpected_keys"]
    assert not found["missing_keys"]
    classifier(llama()).save_pretrained(tmp_path)  # no adapter of another model is told of


def test_an_adapter_whose_child_was_deleted_is_written_while_it_serves(tmp_path):
    model = pair()
    wake(attach(model.encoder, families.lora(), target_modules=["query"], rank=2))
    wanted = answers(model)
    del model.encoder.tnadapt_default
    close(answers(model), wanted, 0.0)
    model.save_pretrained(tmp_path)
    plain = transformers.EncoderDecoderModel.from_pretrained(tmp_path)
    load(plain.encoder, tmp_path / FILE)
    close(answers(plain), wanted)


def test_an_adapter_of_the_whole_takes_no_name_from_one_of_the_part(tmp_path):
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = llama()

    model = Whole()
    attach(model, families.lora(), target_modules=["o_proj"], rank=2)
    wake(attach(model.part, families.lora(), target_modules=["q_proj"], rank=2))
    with pytest.warns(UserWarning, match=r"'default': it was not saved: it is on a model that holds") as told:
        model.part.save_pretrained(tmp_path)
    assert len(told) == 1
    load(other := llama(), tmp_path / FILE)
    close(logits(other), logits(model.part))


def test_offloaded_factors_stay_in_the_file_of_the_model(tmp_path):
    model = attached(llama(), "lora")
    values = {f"tnadapt_default.{key}": value for key, value in model.tnadapt_default.state_dict().items()}
    accelerate.cpu_offload(model.tnadapt_default, execution_device=torch.device("cpu"))
    with pytest.warns(UserWarning, match=r"'default': it was not saved: .*q_proj.A: .*got one on the meta device"):
        model.save_pretrained(tmp_path, state_dict={**model.state_dict(), **values})
    held = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(held[key], value) for key, value in values.items())


def test_a_checkpoint_of_peft_with_trained_factors_is_told(tmp_path):
    """The Trainer resumes PEFT's own adapter from it, and nothing else."""
    model = with_lora(attached(llama(), "lora"))
    model.save_pretrained(tmp_path / "checkpoint-1")
    assert names(tmp_path / "checkpoint-1") == [FILE]
    model.base_model.model.tnadapt_default.requires_grad_(True)
    model.save_pretrained(tmp_path / "out")
    with pytest.warns(UserWarning, match=r"(?s)'default': its file is in the checkpoint, but the Trainer does not"):
        model.save_pretrained(tmp_path / "checkpoint-1")
    assert names(tmp_path / "checkpoint-1") == [FILE]


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
    host = llama()
    load(host, tmp_path / FILE)
    close(logits(PeftModel.from_pretrained(host, tmp_path)), logits(model))
    host = PeftModel.from_pretrained(llama(), tmp_path)
    load(host.base_model.model, tmp_path / FILE)
    close(logits(host), logits(model))


@pytest.mark.parametrize("method", ["from_pretrained", "load_adapter"])
@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_an_update_that_counts_twice_is_told(method, tmp_path):
    """PEFT loads an exported LoRA onto a model that still has the adapter."""
    model = attached(llama(), "lotr")
    state, wanted = model.tnadapt_default, logits(model)
    state.save_as_lora(tmp_path, rank=1)  # which is not exact
    told = r"'default' of PEFT has the update of adapter 'default', which is attached to .*\n.*detach\(\) on 'default'"
    with pytest.warns(UserWarning, match=told):
        getattr(PeftModel if method == "from_pretrained" else type(model), method)(model, tmp_path)
    differs(logits(model), wanted)


def test_another_update_of_peft_beside_an_adapter_is_not_told(tmp_path):
    model = attached(llama(), "lotr")
    model.tnadapt_default.save_as_lora(tmp_path)
    wake(model.tnadapt_default, seed=8)  # trained on
    PeftModel.from_pretrained(model, tmp_path)
    PeftModel.from_pretrained(llama(), tmp_path)
    model = attached(llama(), "lotr")
    model.tnadapt_default.detach()
    PeftModel.from_pretrained(model, tmp_path)


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


def test_the_search_for_classes_rests_while_a_compiler_traces(monkeypatch):
    """One that traces backward passes registers modules of its own, and cannot trace the search."""
    attached(llama(), "lora")
    monkeypatch.setattr(enclosing, "_wrapped", {})  # the search goes on
    searched = []
    monkeypatch.setattr(enclosing, "_wrap_classes", lambda: searched.append(True))
    nn.Sequential(nn.Identity())
    assert searched
    searched.clear()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    nn.Sequential(nn.Identity())
    assert not searched
