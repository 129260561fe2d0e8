"""`CheckpointCallback`: checkpoints of the Trainer that hold what is trained alone, and runs that begin from them."""

import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from tests.peft.models import attached, differs, llama, logits, mixtral, wake
from tests.peft.runs import STEPS, close, losses, model_of, trainer_of, values
from tnadapt import SiteError, families
from tnadapt_torch import attach, load
from tnadapt_torch.policies import Restarts
from tnadapt_torch.trainer import CheckpointCallback, LogCallback, NormsCallback, PolicyCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of transformers, accelerate and PEFT


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch):
    """Skip the garbage collection of accelerate before each run: it takes a third of a second."""
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda garbage_collection=False: None)


def checkpointed(name, folder, steps=STEPS, **more):
    model = attached(llama(), name, **more)
    trainer = trainer_of(
        model,
        folder,
        callbacks=[CheckpointCallback(model.tnadapt_default)],
        save_strategy="steps",
        save_steps=2,
        max_steps=steps,
    )
    return model, trainer


@pytest.mark.parametrize(("name", "more"), [("lotr", {}), ("vera", {"modules_to_save": ["norm"], "fold": True})])
def test_a_run_resumes_from_a_checkpoint_of_what_is_trained(name, more, tmp_path):
    model, whole = checkpointed(name, tmp_path / "run", **more)
    whole.train()
    folder = tmp_path / "run" / "checkpoint-2"
    held = load_file(folder / "model.safetensors")
    wanted = {f"tnadapt_default.{key}" for key in model.tnadapt_default.state_dict()}
    assert held.keys() == wanted | ({"model.norm.weight"} if more else set())
    assert not (folder / "config.json").exists()  # with which from_pretrained would fill in random weights

    again, resumed = checkpointed(name, tmp_path / "other", **more)
    resumed.train(resume_from_checkpoint=str(folder))
    assert losses(resumed) == losses(whole)
    close(values(again.tnadapt_default), values(model.tnadapt_default), 0.0)
    loaded = llama()
    load(loaded, tmp_path / "run" / f"checkpoint-{STEPS}" / "tnadapt_default.safetensors")
    assert (logits(loaded) - logits(model)).abs().max() < 1e-5


def test_a_run_that_resumes_with_another_alpha_is_told(tmp_path):
    """The state dict has the factors, which fit: with ten times the alpha the update is ten times as large."""
    arguments = SimpleNamespace(output_dir=tmp_path, push_to_hub=False, hub_strategy="every_save")
    (tmp_path / "checkpoint-2").mkdir()
    attached(llama(), "lora").tnadapt_default.save(tmp_path / "checkpoint-2" / "tnadapt_default.safetensors")
    told = {}
    for alpha, step in ((4.0, 2), (40.0, 2), (40.0, 0), (40.0, 3)):  # that of the file; another; not resumed; elsewhere
        model = attached(llama(), "lora", alpha=alpha)
        progress = transformers.TrainerState(global_step=step)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            CheckpointCallback(model.tnadapt_default).on_train_begin(arguments, progress, None, model=model)
        told[alpha, step] = ["CheckpointCallback: expected the spec" in str(one.message) for one in seen]
    assert told == {(4.0, 2): [], (40.0, 2): [True], (40.0, 0): [], (40.0, 3): []}


def test_the_best_of_such_checkpoints_is_loaded_and_later_saves_are_whole(tmp_path):
    model, _ = model_of("attach", "lotr")
    steps = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    worst = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = trainer_of(model, tmp_path, callbacks=[CheckpointCallback(model.tnadapt_default)], **steps | worst)
    trainer.train()
    seen = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert max(seen) != seen[-1], "the last checkpoint is the best, so this test shows nothing"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(seen), rel=1e-6)
    model.save_pretrained(tmp_path / "checkpoint-9")
    assert "model.norm.weight" in load_file(tmp_path / "checkpoint-9" / "model.safetensors")


def test_a_run_that_fails_leaves_other_folders_whole(tmp_path):
    model, trainer = checkpointed("lora", tmp_path / "run")
    model.register_forward_hook(lambda *_: (_ for _ in ()).throw(ValueError("broken")))
    with pytest.raises(ValueError, match="broken"):
        trainer.train()
    model.save_pretrained(tmp_path / "checkpoint-2")
    assert "model.norm.weight" in load_file(tmp_path / "checkpoint-2" / "model.safetensors")


def test_a_merged_adapter_and_another_model_give_whole_checkpoints(tmp_path):
    model, trainer = checkpointed("lora", tmp_path / "merged", steps=2)
    wake(second := attach(model, families.vera(), target_modules=["o_proj"], rank=2, adapter_name="second"))
    second.merge()
    trainer.train()
    held = {path.name for path in (tmp_path / "merged" / "checkpoint-2").glob("*.safetensors")}
    assert held == {"model.safetensors", "tnadapt_default.safetensors"}
    assert "model.norm.weight" in load_file(tmp_path / "merged" / "checkpoint-2" / "model.safetensors")

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(6, 6)

        def forward(self, input_ids, labels):
            return {"loss": (self.layer(input_ids.float()) - labels).square().mean()}

    plain = Plain()
    state = attach(plain, families.lora(), target_modules=["layer"], rank=2)
    trainer_of(
        plain, tmp_path, callbacks=[CheckpointCallback(state)], save_strategy="steps", save_steps=1, max_steps=1
    ).train()
    load(Plain(), tmp_path / "checkpoint-1" / "tnadapt_default.safetensors")


@pytest.mark.parametrize("kind", [CheckpointCallback, LogCallback, NormsCallback])
def test_a_callback_is_made_of_the_state_and_not_of_the_model(kind):
    with pytest.raises(SiteError, match=rf"^{kind.__name__}: expected the state of an adapter, got .*Linear"):
        kind(torch.nn.Linear(2, 2))


def test_an_adapter_under_peft_needs_no_such_callback(tmp_path):
    model, state = model_of("bridge", "lora")
    with pytest.raises(SiteError, match=r"(?s)CheckpointCallback: expected an adapter that .* leave this callback out"):
        trainer_of(model, tmp_path, callbacks=[CheckpointCallback(state)], max_steps=1).train()


# ---------------------------------------------------------------- what changes in training without a gradient

norms = nn.utils.parametrizations.spectral_norm


def resumed(make, folder, at=2, **more):
    """Train a model to the end, and one from a checkpoint of the first; return both Trainers and the checkpoint."""
    found = []
    for resume in (None, str(folder / "whole" / f"checkpoint-{at}")):
        model, callbacks = make()
        trainer = trainer_of(
            model,
            folder / ("whole" if resume is None else "again"),
            callbacks=callbacks,
            **{"save_strategy": "steps", "save_steps": 1} | more,
        )
        trainer.train(resume_from_checkpoint=resume)
        found.append(trainer)
    return *found, load_file(folder / "whole" / f"checkpoint-{at}" / "model.safetensors")


@pytest.mark.parametrize("kind", ["trained", "in modules_to_save", "frozen", "trained by the old function"])
def test_a_run_with_spectral_norms_resumes_to_the_last_bit(kind, tmp_path):
    """Each forward pass in training moves their vectors, and the weight that they scale."""

    def make():
        model = llama()
        module = model.model.layers[0].mlp.gate_proj if kind == "frozen" else model.lm_head
        (nn.utils.spectral_norm if "old" in kind else norms)(module)
        saved = ["lm_head"] if "save" in kind else None
        state = attach(model, families.lora(), target_modules=["q_proj"], rank=2, seed=0, modules_to_save=saved)
        if "trained" in kind:
            module.requires_grad_(True)
        return model, [CheckpointCallback(state)]

    whole, again, held = resumed(make, tmp_path)
    assert losses(again) == losses(whole)
    assert torch.equal(logits(again.model), logits(whole.model))
    assert "model.embed_tokens.weight" not in held
    assert any("gate_proj" in key for key in held) == (kind == "frozen")


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_run_of_a_mixture_of_experts_resumes(is_alone, tmp_path):
    """Transformers saves its weights under other keys, which the Trainer does not find when it resumes."""
    parameters = {"experts.gate_up_proj": "expert out in"}

    def make():
        model = mixtral()
        state = attach(model, families.lora(), target_modules=["q_proj"], target_parameters=parameters, rank=2, seed=0)
        return model, [CheckpointCallback(state)] if is_alone else []

    whole, again, held = resumed(make, tmp_path)
    assert losses(again) == losses(whole)
    assert torch.equal(logits(again.model), logits(whole.model))
    assert ("lm_head.weight" in held) != is_alone
    whole.save_model(tmp_path / "out")
    host, found = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not found["unexpected_keys"]
    differs(logits(host), logits(whole.model))
    load(host, tmp_path / "out" / "tnadapt_default.safetensors", target_parameters=parameters)
    assert (logits(host) - logits(whole.model)).abs().max() < 1e-5


def test_a_run_with_two_adapters_and_short_batches_resumes(tmp_path):
    """24 texts in batches of 5, of which two make a step: the last step of an epoch has one batch of 4."""

    def make():
        model = attached(llama(), "lotr")
        wake(other := attach(model, families.vera(), target_modules=["o_proj"], rank=2, seed=5, adapter_name="other"))
        other.requires_grad_(False)
        state = model.tnadapt_default
        return model, [CheckpointCallback(state), LogCallback(state), LogCallback(other)]

    steps = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 5, "gradient_accumulation_steps": 2}
    limits = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "save_total_limit": 2}
    whole, again, held = resumed(make, tmp_path, at=5, **steps | limits)
    assert [line["step"] for line in whole.state.log_history if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert losses(again) == losses(whole)
    assert torch.equal(logits(again.model), logits(whole.model))
    states = {name: getattr(whole.model, name).state_dict() for name in ("tnadapt_default", "tnadapt_other")}
    assert held.keys() == {f"{name}.{key}" for name, state in states.items() for key in state}
    line = whole.state.log_history[0]
    assert line["tnadapt_default/grad_norm/all"] > 0
    assert "tnadapt_other/norm/dW" in line
    assert "tnadapt_other/grad_norm/all" not in line  # it is frozen


def test_a_chain_resumes_from_checkpoints_without_the_weights_that_it_changed(tmp_path):
    def run(folder, resume=None):
        model = llama()
        state = attach(model, families.lora(), target_modules=["q_proj"], rank=2, seed=0)
        optimizer = torch.optim.AdamW(state.parameter_groups(lr=0.05))
        restarts = Restarts(state, optimizer, every=2)
        rate = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        trainer = trainer_of(
            model,
            folder,
            callbacks=[PolicyCallback(restarts), CheckpointCallback(state)],
            optimizers=(optimizer, rate),
            save_strategy="steps",
            save_steps=3,
        )
        trainer.train(resume_from_checkpoint=resume)
        return model

    wanted = logits(run(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    assert torch.equal(logits(run(tmp_path / "again", str(tmp_path / "again" / "checkpoint-3"))), wanted)


# ---------------------------------------------------------------- after an interrupt, and before an upload


def test_an_interrupted_run_leaves_later_runs_and_saves_whole(tmp_path):
    model, trainer = checkpointed("lora", tmp_path)
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt("pressed")

    handle = model.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt, match="pressed"):
        trainer.train()
    handle.remove()
    model.save_pretrained(tmp_path / "checkpoint-9")
    assert "model.norm.weight" in load_file(tmp_path / "checkpoint-9" / "model.safetensors")
    trainer_of(model, tmp_path, save_strategy="steps", save_steps=1).train()  # without the callback
    for step in (1, 3, 4):
        assert "model.norm.weight" in load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")
    shutil.rmtree(tmp_path)
    trainer.train()
    assert "model.norm.weight" not in load_file(tmp_path / "checkpoint-2" / "model.safetensors")


def test_what_the_trainer_uploads_has_the_whole_model_and_the_adapter(tmp_path, monkeypatch):
    uploaded = []

    def upload_folder(*, folder_path, **_):
        uploaded.append({path.name: path.read_bytes() for path in Path(folder_path).glob("*.safetensors")})
        return SimpleNamespace(done=lambda: True)

    api = SimpleNamespace(
        create_repo=lambda *_, **__: SimpleNamespace(repo_id="some/model"), upload_folder=upload_folder
    )
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: api)
    model = attached(llama(), "lora")
    callback = CheckpointCallback(model.tnadapt_default)
    steps = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer_of(model, tmp_path, callbacks=[callback], push_to_hub=True, hub_always_push=True, **steps).train()
    assert uploaded
    for files in uploaded:
        assert b"model.norm.weight" in files["model.safetensors"]
        assert "tnadapt_default.safetensors" in files
