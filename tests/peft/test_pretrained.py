"""`save_pretrained` of a model of transformers that `attach` adapted: the model, and each adapter in a file beside."""

import copy
import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from tests.peft.models import TARGETS, attached, bert, close, config, differs, gpt2, llama, logits, wake
from tnadapt import FormatError, families
from tnadapt_torch import attach, load
from tnadapt_torch._state import Run

FILE = "tnadapt_default.safetensors"


@pytest.fixture(autouse=True)
def strict():
    """Let nothing warn but the tests that expect it; transformers' own messages are logged, not warned."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def again(folder, kind="LlamaForCausalLM") -> nn.Module:
    return getattr(transformers, kind).from_pretrained(folder).eval()


def expected_keys(folder) -> set[str]:
    """Return the keys that the plain model writes."""
    llama().save_pretrained(folder / "plain")
    return set(load_file(folder / "plain" / "model.safetensors"))


@pytest.mark.parametrize(("name", "more"), [("lotr", {}), ("vera", {}), ("lora", {"fold": True})])
def test_a_saved_folder_has_the_model_and_the_adapter_beside_it(name, more, tmp_path):
    plain = logits(llama())
    model = attached(llama(), name, **more)
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == expected_keys(tmp_path)
    host, found = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["unexpected_keys"]
    assert not found["missing_keys"]
    close(logits(host), plain, 0.0)
    load(host, tmp_path / FILE)
    close(logits(host), logits(model), 1e-5)  # folded, sums are rounded in another order: by 1.3e-6 on one processor
    differs(logits(host), plain)

    model.save_pretrained(tmp_path / "checkpoint-3")  # from which the Trainer resumes
    held = load_file(tmp_path / "checkpoint-3" / "model.safetensors").keys()
    assert held > load_file(tmp_path / "model.safetensors").keys()


@pytest.mark.parametrize(("make", "kind", "targets"), [(gpt2, "GPT2LMHeadModel", ["c_attn"]), (bert, None, ["query"])])
def test_tied_weights_and_a_trained_head_come_back(make, kind, targets, tmp_path):
    model = make()
    saved = None if kind else ["classifier"]
    state = attach(model, families.lora(), target_modules=targets, rank=2, modules_to_save=saved)
    wake(state)
    if saved:
        nn.init.normal_(model.classifier.weight)
    model.save_pretrained(tmp_path)
    host = again(tmp_path, kind or "BertForSequenceClassification")
    load(host, tmp_path / FILE)
    close(logits(host), logits(model))
    with state.disabled():
        model.save_pretrained(tmp_path / "disabled")
    host = again(tmp_path / "disabled", kind or "BertForSequenceClassification")
    load(host, tmp_path / "disabled" / FILE)
    close(logits(host), logits(model))


def test_two_adapters_give_two_files_and_a_merged_one_none(tmp_path):
    model = attached(llama(), "lora")
    wake(second := attach(model, families.vera(), target_modules=["o_proj"], rank=2, adapter_name="second"))
    model.save_pretrained(tmp_path / "both")
    host = again(tmp_path / "both")
    for name in ("default", "second"):
        load(host, tmp_path / "both" / f"tnadapt_{name}.safetensors", adapter_name=name)
    close(logits(host), logits(model))

    second.merge()
    model.save_pretrained(tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "one").glob("tnadapt*")) == [FILE]
    assert load_file(tmp_path / "one" / "model.safetensors").keys() == expected_keys(tmp_path)
    host = again(tmp_path / "one")
    load(host, tmp_path / "one" / FILE)
    close(logits(host), logits(model))
    with pytest.warns(UserWarning, match=r"(?s)'second': its update is in the weights .* Remove the file"):
        model.save_pretrained(tmp_path / "both")


@pytest.mark.parametrize("kind", ["whole", "part"])
def test_the_file_of_an_adapter_that_was_merged_for_good_is_told(kind, tmp_path):
    model = llama()
    state = attach(model if kind == "whole" else model.model, families.lora(), target_modules=["q_proj"], rank=2)
    wake(state)
    model.save_pretrained(tmp_path)
    state.merge()
    state.detach()
    with pytest.warns(UserWarning, match=r"(?s)'default': its update is in the weights .* Remove the file"):
        model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "elsewhere")
    wake(attach(model, families.lora(), target_modules=["v_proj"], rank=2))
    model.save_pretrained(tmp_path)  # another adapter of this name has replaced the file
    host = again(tmp_path)
    load(host, tmp_path / FILE)
    close(logits(host), logits(model))


def test_the_file_of_a_detached_adapter_is_kept(tmp_path):
    model = attached(llama(), "lora")
    model.save_pretrained(tmp_path)
    wanted = logits(model)
    model.tnadapt_default.detach()
    model.save_pretrained(tmp_path)
    host = again(tmp_path)
    load(host, tmp_path / FILE)
    close(logits(host), wanted)


def test_a_detached_adapter_leaves_the_method_as_it_was(tmp_path):
    model = llama()
    first = attach(model, families.lora(), target_modules=["q_proj"], rank=2)
    second = attach(model.model, families.lora(), target_modules=["k_proj"], rank=2, adapter_name="second")
    first.detach()
    assert "save_pretrained" not in vars(model)
    model.model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("tnadapt*")] == ["tnadapt_second.safetensors"]
    second.detach()
    assert all("save_pretrained" not in vars(module) for module in model.modules())

    calls = []
    model.save_pretrained = calls.append
    state = attach(model, families.lora(), target_modules=["q_proj"], rank=2)
    model.save_pretrained(tmp_path)
    state.detach()
    model.save_pretrained("own")
    assert calls == [tmp_path, "own"]


def test_a_copy_and_a_pickle_save_their_own_adapters(tmp_path):
    model = attached(llama(), "lora")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for number, other in enumerate([copy.deepcopy(model), torch.load(file, weights_only=False)]):
        wake(other.tnadapt_default, seed=number)
        other.save_pretrained(tmp_path / f"{number}")
        host = again(tmp_path / f"{number}")
        load(host, tmp_path / f"{number}" / FILE)
        close(logits(host), logits(other))
        differs(logits(host), logits(model))


def test_what_cannot_be_saved_is_told_and_the_model_is_saved(tmp_path):
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = llama()

    outer = Whole()
    attach(outer, families.lora(), target_modules=["q_proj"], rank=2)
    with pytest.warns(UserWarning, match=r"(?s)'default': .* it is on a model that holds this one.*save\(path\)"):
        outer.part.save_pretrained(tmp_path / "part")
    assert not (tmp_path / "part" / FILE).exists()

    model = attached(llama(), "lora")
    model.model.layers[0].self_attn.q_proj = nn.Linear(16, 16, bias=False)
    with pytest.warns(UserWarning, match=r"(?s)'default': it was not saved: .*q_proj: expected the weight of shape"):
        model.save_pretrained(tmp_path / "odd")
    assert "tnadapt_default.factors.0.self_attn.q_proj.A" in load_file(tmp_path / "odd" / "model.safetensors")
    again(tmp_path / "odd")


def test_a_process_that_is_not_the_main_one_writes_no_adapter(tmp_path):
    attached(llama(), "lora").save_pretrained(tmp_path, is_main_process=False)
    assert list(tmp_path.glob("tnadapt*")) == []


def test_a_given_state_dict_is_saved_and_a_folded_model_loads_a_plain_one(tmp_path):
    model = attached(llama(), "lora", fold=True)
    values = {key: value + 1 for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=values)
    other = llama()
    other.load_state_dict({key: value + 1 for key, value in other.state_dict().items()})
    close(logits(again(tmp_path)), logits(other), 0.0)

    model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    with model.tnadapt_default.disabled():
        close(logits(model), logits(other), 0.0)


@pytest.mark.parametrize("name", ["lora", "vera"])
def test_a_state_dict_holds_the_values_and_needs_an_equal_attach(name):
    """As the guide says: torch.save(model.state_dict()) has every factor, and not the spec."""
    model = attached(llama(), name)
    other = llama()
    attach(other, model.tnadapt_default.spec, **model_sizes(name))
    assert other.load_state_dict(model.state_dict(), strict=True).missing_keys == []
    close(logits(other), logits(model), 0.0)
    alone = llama()
    state = attach(alone, model.tnadapt_default.spec, **model_sizes(name))
    state.load_state_dict(model.tnadapt_default.state_dict())
    close(logits(alone), logits(model), 0.0)


def model_sizes(name):
    asked = config(name)
    return {"target_modules": TARGETS, "rank": asked.rank, "alpha": asked.alpha, "seed": 0}


class Threaded(nn.Module):
    """Takes its state dict in this thread and in another one while it is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def save_pretrained(self, folder):
        with ThreadPoolExecutor() as pool:
            return self.state_dict().keys(), pool.submit(self.state_dict).result().keys()


def test_only_the_state_dict_that_is_saved_lacks_the_factors(tmp_path):
    model = Threaded()
    state = attach(model, families.lora(), target_modules=["layer"], rank=2)
    saved, elsewhere = model.save_pretrained(tmp_path)
    assert set(saved) == set(Threaded().state_dict())
    assert set(elsewhere) == set(model.state_dict()) > set(saved)
    load(Threaded(), tmp_path / f"{state.child_name}.safetensors")


@dataclass
class Progress:
    """What counts the steps, as the TrainerState."""

    global_step: int


class QuantLinear(nn.Module):
    """A quantized layer, whose weight is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features = self.out_features = 4
        self.register_buffer("qweight", torch.ones(4, 4, dtype=torch.int8))

    def forward(self, x):
        return x @ self.qweight.float()


class Norm(nn.BatchNorm1d):
    """Stores something beside its tensors."""

    def get_extra_state(self):
        return torch.tensor(3)

    def set_extra_state(self, state):
        pass


class Small(nn.Module):
    """Not a model of transformers, but with a method of that name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.packed = nn.Linear(4, 4), Norm(4), QuantLinear()

    def forward(self, x):
        return self.packed(self.norm(self.layer(x)))

    def save_pretrained(self, folder, push_to_hub=False):
        folder.mkdir(parents=True)
        torch.save(self.state_dict(), folder / "model.pt")


def test_an_upload_without_the_adapter_is_told(tmp_path):
    model = Small()
    attach(model, families.lora(), target_modules=["layer"], rank=2)
    with pytest.warns(UserWarning, match=r"(?s)tnadapt_default\.safetensors was written, but not uploaded"):
        model.save_pretrained(tmp_path / "out", push_to_hub=True)
    load(Small(), tmp_path / "out" / FILE)


def test_a_checkpoint_of_what_is_trained_has_what_changes_without_gradients(tmp_path):
    model = Small()
    state = attach(model, families.lora(), target_modules=["layer"], rank=2)
    model.layer.bias.requires_grad_(True)
    state.run = Run(tmp_path, progress := Progress(global_step=1))
    model.save_pretrained(tmp_path / "checkpoint-1")
    factors = {"tnadapt_default.factors.A", "tnadapt_default.factors.B"}
    norm = {f"norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked", "_extra_state")}
    assert load_file(tmp_path / "checkpoint-1" / "model.safetensors").keys() == factors | norm | {"layer.bias"}
    copied = copy.deepcopy(model)  # is no part of the run
    copied.save_pretrained(tmp_path / "copied" / "checkpoint-1")
    for name in ("other", "checkpoint-2"):  # no checkpoint, and none of this step
        model.save_pretrained(tmp_path / name)
    progress.global_step = 3
    model.save_pretrained(tmp_path / "checkpoint-3")
    assert "layer.weight" not in load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    progress.global_step = 4
    del progress  # the Trainer is gone
    model.save_pretrained(tmp_path / "checkpoint-4")
    for name in ("copied/checkpoint-1", "other", "checkpoint-2", "checkpoint-4"):
        assert "layer.weight" in torch.load(tmp_path / name / "model.pt")


def test_a_checkpoint_beside_the_config_of_an_earlier_run_is_whole(tmp_path):
    """With that file, `from_pretrained` would take what is trained for a model, and fill in random weights."""
    model = attached(llama(), "lora")
    folder, progress = tmp_path / "checkpoint-2", Progress(global_step=2)
    model.save_pretrained(folder)
    model.tnadapt_default.run = Run(tmp_path, progress)
    model.save_pretrained(folder)
    close(logits(again(folder)), logits(llama()), 0.0)


def test_a_folded_weight_that_is_tied_keeps_the_key_of_its_twin(tmp_path):
    model = gpt2()
    wake(attach(model, families.lora(), target_modules=["lm_head"], rank=2, fold=True))
    model.save_pretrained(tmp_path)
    host = again(tmp_path, "GPT2LMHeadModel")
    close(logits(host), logits(gpt2()), 0.0)
    load(host, tmp_path / FILE)
    close(logits(host), logits(model))


def test_a_second_adapter_of_one_name_does_not_replace_the_file_of_the_first(tmp_path):
    model = llama()
    first = attach(model, families.lora(), target_modules=["q_proj"], rank=2)
    wake(first)
    attach(model.model, families.lora(), target_modules=["k_proj"], rank=2)
    with pytest.warns(UserWarning, match=r"'default': it was not saved: .*\nSave it with state.save"):
        model.save_pretrained(tmp_path)
    kept = load_file(tmp_path / FILE)
    assert kept.keys() == load_file(first.save(tmp_path / "alone.safetensors") or tmp_path / "alone.safetensors").keys()
    assert all(torch.equal(kept[key], value) for key, value in load_file(tmp_path / "alone.safetensors").items())


def test_a_full_disk_is_an_error_and_no_warning(tmp_path, monkeypatch):
    def stop(number):
        raise OSError("disk full")

    model = attached(llama(), "lora")
    monkeypatch.setattr("os.fsync", stop)
    with pytest.raises(FormatError, match=r"default\.safetensors: expected a writable path, got error 'disk full'"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / FILE).exists()
