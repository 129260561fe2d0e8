"""The Trainer of transformers, with the plain binding and with PEFT: resume, accumulate, autocast, log norms."""

import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings from importing PEFT
    from peft import get_peft_model

from tests.peft.models import llama
from tests.peft.runs import STEPS, close, losses, model_of, trainer_of, values
from tnadapt import families, step_size
from tnadapt_torch import attach
from tnadapt_torch.peft import TnConfig
from tnadapt_torch.trainer import LogCallback, NormsCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of transformers, accelerate and PEFT


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch):
    """Skip the garbage collection of accelerate before each run: it takes a third of a second."""
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda garbage_collection=False: None)


both = pytest.mark.parametrize("kind", ["attach", "bridge"])


@both
@pytest.mark.parametrize("name", ["lotr", "vera"])
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(kind, name, tmp_path):
    model, state = model_of(kind, name)
    whole = trainer_of(model, tmp_path, save_strategy="steps", save_steps=STEPS // 2)
    whole.train()
    model, resumed = model_of(kind, name)
    again = trainer_of(model, tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    assert losses(again) == losses(whole)  # the first half comes from the checkpoint
    close(values(resumed), values(state), 0.0)


@both
def test_the_best_checkpoint_is_loaded_at_the_end(kind, tmp_path):
    model, _ = model_of(kind, "lotr")
    steps = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    worst = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = trainer_of(model, tmp_path, **steps | worst)
    trainer.train()
    seen = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert max(seen) != seen[-1], "the last checkpoint is the best, so this test shows nothing"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(seen), rel=1e-6)


@both
def test_accumulation_and_gradient_checkpointing_change_no_step(kind, tmp_path):
    model, plain = model_of(kind, "lotr")
    trainer_of(model, tmp_path).train()
    half = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    model, state = model_of(kind, "lotr")
    trainer_of(model, tmp_path, gradient_checkpointing=True, **half).train()
    close(values(state), values(plain), 1e-3)  # four steps of Adam, which divides by the size of small gradients


@both
def test_bf16_autocast_trains_float32_factors(kind, tmp_path):
    model, _ = model_of(kind, "lotr")
    full = trainer_of(model, tmp_path)
    full.train()
    model, state = model_of(kind, "lotr")
    half = trainer_of(model, tmp_path, bf16=True)
    half.train()
    assert {parameter.dtype for parameter in state.parameters()} == {torch.float32}
    assert losses(half) == pytest.approx(losses(full), rel=2e-2)
    assert losses(half) != losses(full)


@both
def test_norms_are_logged_and_parameter_groups_keep_their_rates(kind, tmp_path):
    model, state = model_of(kind, "lotr")
    groups = state.parameter_groups(lr=0.01, ratio=4.0)
    optimizer = torch.optim.SGD(groups)
    trainer = trainer_of(
        model,
        tmp_path,
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)),
        callbacks=[NormsCallback(state)],
        max_steps=2,
    )
    trainer.train()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.04, 0.01]
    steps = [line for line in trainer.state.log_history if "loss" in line]
    assert all({"norm_A", "norm_G", "norm_B", "norm_dW"} < line.keys() for line in steps)
    assert steps[-1]["norm_dW"] == pytest.approx(state.norms()["dW"])
    assert steps[0]["norm_dW"] != steps[1]["norm_dW"]


def test_a_checkpoint_under_peft_holds_only_the_adapter(tmp_path):
    model, state = model_of("bridge", "vera")
    trainer = trainer_of(model, tmp_path, max_steps=1, save_strategy="steps", save_steps=1, save_only_model=True)
    trainer.train()
    size = (tmp_path / "checkpoint-1" / "adapter_model.safetensors").stat().st_size
    trained = sum(4 * parameter.numel() for parameter in state.parameters())
    assert trained < size < trained + 3000


@both
def test_a_large_step_is_warned_about_once(kind, tmp_path):
    """LoTR's alpha of 1,000 and no scale of its own: the warning knows the rates of the optimizer."""
    spec, usual = families.lotr(), {"rank": 2, "alpha": 1000, "target_modules": ["q_proj", "v_proj"], "seed": 0}
    if kind == "attach":
        model = llama()
        state = attach(model, spec, **usual)
    else:
        model = get_peft_model(llama(), TnConfig(spec=spec, **usual))
        state = model.base_model.states()["default"]
    factor = max(size.of_lora for size in step_size(state.adapter).values())
    optimizer = torch.optim.AdamW(state.parameter_groups(lr=1e-4, balance=True))
    told = []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            trainer_of(
                model, tmp_path, callbacks=[NormsCallback(state)], optimizers=(optimizer, None), max_steps=1
            ).train()
        told += [str(one.message) for one in seen if "first step of Adam" in str(one.message)]
    (text,) = told
    assert f"moves lotr {factor:.3g} times as far as a LoRA of rank 8 and alpha 8" in text
    assert f"it moves as LoRA does at a rate of {1e-4 * factor:.2g}." in text


@both
def test_the_numbers_of_a_step_are_logged_with_its_gradients(kind, tmp_path):
    model, state = model_of(kind, "lotr")
    wanted = []
    log = state.log
    state.log = lambda *args, **words: wanted.append(log(*args, **words)) or wanted[-1]
    trainer = trainer_of(
        model,
        tmp_path,
        callbacks=[LogCallback(state)],
        logging_steps=2,
        logging_first_step=True,
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 4]
    assert len(wanted) == 3  # the other steps and the evaluations read nothing
    for line, found in zip(lines, wanted, strict=True):
        assert {name: line[name] for name in found} == found
        assert found[f"{state.child_name}/grad_norm/G"] > 0
        assert found[f"{state.child_name}/step/lora_rate"] > 0
    others = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert not any(name.startswith("tnadapt") for line in others for name in line)
    assert lines[-1][f"{state.child_name}/norm/dW"] == pytest.approx(state.norms()["dW"])


def test_logs_of_epochs_have_the_norms(tmp_path):
    model, state = model_of("attach", "lora")
    trainer = trainer_of(
        model, tmp_path, callbacks=[LogCallback(state)], logging_strategy="epoch", max_steps=-1, num_train_epochs=1
    )
    trainer.train()
    (line,) = [line for line in trainer.state.log_history if "loss" in line]
    assert line["tnadapt_default/norm/dW"] == pytest.approx(state.norms()["dW"])


def test_a_second_run_logs_its_own_numbers(tmp_path):
    model, state = model_of("attach", "lora")
    callback = LogCallback(state)
    trainer_of(model, tmp_path, callbacks=[callback], max_steps=6).train()
    epochs = {"logging_strategy": "epoch", "max_steps": -1, "num_train_epochs": 1}  # of six steps
    trainer = trainer_of(model, tmp_path, callbacks=[callback], **epochs)
    trainer.train()
    (line,) = [line for line in trainer.state.log_history if "loss" in line]
    assert line["tnadapt_default/norm/dW"] == pytest.approx(state.norms()["dW"])
