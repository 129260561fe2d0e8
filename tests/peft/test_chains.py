"""Chains under the Trainer of transformers and under accelerate: resumed runs, and the best checkpoint."""

import shutil
import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings from importing transformers
    from accelerate import Accelerator

from tests.peft.models import TARGETS, llama, words
from tests.peft.runs import losses, trainer_of
from tests.thorough import IS_THOROUGH
from tnadapt import SiteError, families
from tnadapt_torch import attach
from tnadapt_torch.policies import Restarts, cola, rac_lora, relora, xgblora
from tnadapt_torch.trainer import PolicyCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of transformers, accelerate and PEFT

STEPS, EVERY, HALF = 8, 3, 5  # a checkpoint in the middle of the second link; another lies at its end
SAVES = {"save_strategy": "steps", "save_steps": 1}
METHODS = {
    "cola": (families.lotr(), 2, lambda state, steps: cola(state, steps, EVERY, warmup_steps=2)),
    "neutral": (families.lotr(start="neutral"), 2, lambda state, steps: cola(state, steps, EVERY)),
    "relora": (families.lora(), 2, lambda state, steps: relora(state, steps, EVERY, warmup_steps=2, prune=0.5)),
    "pissa": (families.pissa(), 2, lambda state, steps: cola(state, steps, EVERY)),
    "rac_lora": (families.lora(frozen_a=True), 2, lambda state, steps: rac_lora(state, steps, EVERY)),
    "xgblora": (families.lora(), 1, lambda state, steps: xgblora(state, steps, EVERY, sites=2, warmup_steps=1)),
    "beside": (families.lora(), 2, lambda state, steps: Restarts(state, steps, every=EVERY, beside=True)),
    "beside vera": (families.vera(), 2, lambda state, steps: Restarts(state, steps, every=EVERY, beside=True)),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch):
    """Skip the garbage collection of accelerate before each run: it takes a third of a second."""
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda garbage_collection=False: None)


def begin(method, dtype=torch.float32):
    spec, rank, make = METHODS[method]
    model = llama().to(dtype)
    state = attach(model, spec, target_modules=TARGETS, rank=rank, seed=3)
    optimizer = torch.optim.AdamW(state.parameters(), lr=0.02)
    policy = make(state, optimizer)
    return model, optimizer, policy, torch.optim.lr_scheduler.LambdaLR(optimizer, policy.warmup)


def run_of(method, folder, *, dtype=torch.float32, resume=None, **more):
    model, optimizer, policy, schedule = begin(method, dtype)
    trainer = trainer_of(
        model,
        folder,
        optimizers=(optimizer, schedule),
        callbacks=[PolicyCallback(policy)],
        **{"max_steps": STEPS} | more,
    )
    trainer.train(resume_from_checkpoint=resume and str(folder / f"checkpoint-{resume}"))
    return trainer, policy


def assert_same(model, other):
    wanted, found = model.state_dict(), other.state_dict()
    assert wanted.keys() == found.keys()
    assert [key for key in wanted if not torch.equal(wanted[key], found[key])] == []
    assert torch.equal(model(words()).logits, other(words()).logits)


EVERY_RUN = [(method, dtype) for method in METHODS for dtype in DTYPES]
SOME_RUNS = [(method, DTYPES[at % 3]) for at, method in enumerate(METHODS)]  # each dtype twice


@pytest.mark.parametrize(("method", "dtype"), EVERY_RUN if IS_THOROUGH else SOME_RUNS, ids=str)
def test_a_resumed_run_is_the_uninterrupted_one(method, dtype, tmp_path):
    whole, policy = run_of(method, tmp_path, dtype=dtype, **SAVES)
    assert len(policy.links) == 3
    for half in (HALF, 2 * EVERY):  # in the middle of a link, and where one has just ended
        again, other = run_of(method, tmp_path, dtype=dtype, resume=half)
        assert losses(again) == losses(whole)
        assert_same(whole.model, again.model)
        assert str(other.state_dict()) == str(policy.state_dict())
        rates = [[line["learning_rate"] for line in one.state.log_history if "loss" in line] for one in (whole, again)]
        assert rates[0] == rates[1]


@every_method
def test_the_policy_follows_the_best_checkpoint(method, tmp_path):
    evaluated = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    worst = {"metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer, policy = run_of(method, tmp_path, **SAVES, **evaluated, **worst)
    number = trainer.state.best_global_step
    assert number < STEPS, "the last checkpoint is the best, so this test shows nothing"
    shutil.rmtree(tmp_path)
    wanted, other = run_of(method, tmp_path, max_steps=number)
    assert policy.steps == number
    assert_same(wanted.model, trainer.model)
    assert str(other.state_dict()) == str(policy.state_dict())


def test_a_run_goes_on_after_a_fault_in_the_same_process(tmp_path):
    whole, _ = run_of("cola", tmp_path, **SAVES)
    model, optimizer, policy, schedule = begin("cola")
    more = {"optimizers": (optimizer, schedule), "callbacks": [PolicyCallback(policy)], "max_steps": STEPS}
    trainer = trainer_of(model, tmp_path, **more)
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{2 * EVERY}"))
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{EVERY - 1}"))  # from before the first restart
    assert losses(trainer) == losses(whole)
    assert_same(whole.model, model)


def test_a_model_that_was_made_from_the_checkpoint_is_refused(tmp_path):
    whole, _ = run_of("cola", tmp_path, **SAVES)
    model = llama()
    model.load_state_dict({key: value for key, value in whole.model.state_dict().items() if "tnadapt" not in key})
    state = attach(model, families.lotr(), target_modules=TARGETS, rank=2, seed=3)
    optimizer = torch.optim.AdamW(state.parameters(), lr=0.02)
    policy = cola(state, optimizer, EVERY, warmup_steps=2)
    callbacks = [PolicyCallback(policy)]
    trainer = trainer_of(model, tmp_path, optimizers=(optimizer, None), callbacks=callbacks, max_steps=STEPS)
    with pytest.raises(SiteError, match="without links in its weights"):
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{HALF}"))


# ---- accelerate


def accelerated(method, *, first, steps=STEPS, folder=None, resume=False, accumulate=1):
    """Train by a loop of accelerate; make the policy first or last, save or load the whole state in the middle."""
    spec, rank, make = METHODS[method]
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = llama()
    state = attach(model, spec, target_modules=TARGETS, rank=rank, seed=3)
    optimizer = torch.optim.AdamW(state.parameters(), lr=0.02)
    policy = make(state, optimizer) if first else None
    model, optimizer = accelerator.prepare(model, optimizer)
    policy = policy or make(state, optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, policy.warmup)
    accelerator.register_for_checkpointing(policy, schedule)
    if resume:
        accelerator.load_state(str(folder), strict="beside" not in method)
    for number in range(policy.steps * accumulate, steps * accumulate):
        with accelerator.accumulate(model):
            torch.manual_seed(number)
            texts = torch.randint(0, 32, (4, 6)).chunk(accumulate)[number % accumulate]
            accelerator.backward(model(input_ids=texts, labels=texts).loss)
            optimizer.step()
            if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
                policy.step()
                schedule.step()
            optimizer.zero_grad()
        if folder and not resume and policy.steps == HALF:
            accelerator.save_state(str(folder))
    return accelerator.unwrap_model(model), policy


EVERY_ORDER = [(method, first) for method in METHODS for first in (True, False)]
SOME_ORDERS = [("cola", True), ("relora", False), ("beside", True), ("beside vera", False)]


@pytest.mark.parametrize(("method", "first"), EVERY_ORDER if IS_THOROUGH else SOME_ORDERS)
def test_a_chain_under_accelerate_resumes(method, first, tmp_path):
    model, policy = accelerated(method, first=first, folder=tmp_path)
    again, other = accelerated(method, first=first, folder=tmp_path, resume=True)
    assert_same(model, again)
    assert str(other.state_dict()) == str(policy.state_dict())


@every_method
def test_accelerate_changes_no_step(method):
    model, optimizer, policy, schedule = begin(method)
    for number in range(STEPS):
        torch.manual_seed(number)
        texts = torch.randint(0, 32, (4, 6))
        optimizer.zero_grad()
        model(input_ids=texts, labels=texts).loss.backward()
        optimizer.step()
        policy.step()
        schedule.step()
    assert_same(model, accelerated(method, first=True)[0])
    _, other = accelerated(method, first=False, accumulate=2)
    assert other.steps == policy.steps
    assert [one.seed for one, _ in other.links.links] == [one.seed for one, _ in policy.links.links]
