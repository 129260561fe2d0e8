"""Policies under the Trainer of transformers: steps, resumed runs, and what is refused under PEFT."""

import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings from importing PEFT
    from peft import get_peft_model

from tests.peft.models import attached, config, llama
from tests.peft.runs import losses, trainer_of, values
from tnadapt import SiteError
from tnadapt.policies import Budget, Growth, Rounding, units
from tnadapt_torch.policies import BudgetSchedule, GrowthSchedule, RoundingSchedule
from tnadapt_torch.trainer import PolicyCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of transformers, accelerate and PEFT

STEPS = 8
MAKERS = {
    "budget": lambda state, steps, shapes: BudgetSchedule(state, steps, Budget(target=8, steps=6), shapes=shapes),
    "rounding": lambda state, steps, shapes: RoundingSchedule(state, steps, Rounding({3: 1}), shapes=shapes),
}


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch):
    """Skip the garbage collection of accelerate before each run: it takes a third of a second."""
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda garbage_collection=False: None)


def run_of(make, folder, *, shapes="change", resume=None, **more):
    model = attached(llama(), "lora")
    state = model.tnadapt_default
    optimizer = torch.optim.AdamW(state.parameters(), lr=0.01)
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    policy = make(state, optimizer, shapes)
    callbacks = [PolicyCallback(policy)]
    trainer = trainer_of(model, folder, optimizers=(optimizer, constant), callbacks=callbacks, max_steps=STEPS, **more)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, state, policy


@pytest.mark.parametrize("kind", MAKERS)
def test_a_policy_takes_one_step_for_each_of_the_optimizer(kind, tmp_path):
    half = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer, state, policy = run_of(MAKERS[kind], tmp_path, **half)
    assert policy.policy.time == STEPS
    assert sum(group.network.sizes["r"] for group in state.adapter.groups) < 2 * len(state.adapter.groups)
    assert len(losses(trainer)) == STEPS


def test_growth_under_the_trainer(tmp_path):
    make = lambda state, steps, _: GrowthSchedule(state, steps, Growth(target=20, steps=6))  # noqa: E731
    _, state, _ = run_of(make, tmp_path)
    assert sum(unit.rank for unit in units(state.adapter).values()) == 20


@pytest.mark.parametrize("kind", MAKERS)
def test_a_resumed_run_is_the_uninterrupted_one(kind, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": STEPS // 2}
    whole, state, policy = run_of(MAKERS[kind], tmp_path, shapes="keep", **saves)
    checkpoint = tmp_path / f"checkpoint-{STEPS // 2}"
    again, resumed, other = run_of(MAKERS[kind], tmp_path, shapes="keep", resume=str(checkpoint))
    assert losses(again) == losses(whole)
    assert other.state_dict() == policy.state_dict()
    for name, value in values(state).items():
        assert torch.equal(values(resumed)[name], value)
    (checkpoint / "tnadapt_policy.pt").unlink()
    with pytest.raises(SiteError, match=r"PolicyCallback: expected the state of the policy in .*, got no file"):
        run_of(MAKERS[kind], tmp_path, shapes="keep", resume=str(checkpoint))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_policy_follows_the_best_checkpoint(kind, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    worst = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer, _, policy = run_of(MAKERS[kind], tmp_path, shapes="keep", **saves, **worst)
    number = trainer.state.best_global_step
    assert number < STEPS, "the last checkpoint is the best, so this test shows nothing"
    assert policy.policy.time == number
    stored = torch.load(tmp_path / f"checkpoint-{number}" / "tnadapt_policy.pt", weights_only=True)
    assert policy.state_dict() == stored


def test_an_adapter_under_peft_is_refused():
    model = get_peft_model(llama(), config("lora"))
    state = model.base_model.states()["default"]
    optimizer = torch.optim.AdamW(state.parameters())
    before = values(state)
    for kind, make in MAKERS.items():
        with pytest.raises(SiteError, match=r"expected an adapter that is attached to a model, got one under PEFT"):
            make(state, optimizer, "change")
        assert kind
    with pytest.raises(SiteError, match=r"PEFT's methods switch, merge and delete it"):
        GrowthSchedule(state, optimizer, Growth(target=20, steps=6))
    for name, value in values(state).items():
        assert torch.equal(value, before[name])


def test_the_budget_and_the_running_means_are_those_of_pefts_adalora():
    from peft import AdaLoraConfig
    from peft.tuners.adalora.layer import RankAllocator

    words = {"init_r": 4, "target_r": 2, "tinit": 3, "tfinal": 5, "deltaT": 2, "total_step": 20}
    allocator = object.__new__(RankAllocator)
    allocator.peft_config = AdaLoraConfig(**words)
    allocator.adapter_name, allocator.beta1, allocator.beta2 = "default", 0.85, 0.85
    allocator.init_bgt, allocator.target_bgt = 12, 6
    allocator.reset_ipt()
    model = torch.nn.Module()
    model.lora_E = torch.nn.ParameterDict({"default": torch.nn.Parameter(torch.randn(12, dtype=torch.float64))})
    value = model.lora_E["default"]
    budget = Budget(target=6, steps=20, warmup=3, final=5, every=2)
    for _ in range(3):
        value.grad = torch.randn(12, dtype=torch.float64)
        allocator.update_ipt(model)
        assert budget.step({"r": (value * value.grad).detach().numpy()}) == {}
    for found, wanted in ((budget.mean, allocator.exp_avg_ipt), (budget.deviation, allocator.exp_avg_unc)):
        assert torch.allclose(torch.from_numpy(found["r"]), wanted["lora_E.default"], rtol=1e-13, atol=0)
    for step in range(1, 21):
        allowed, is_decided = allocator.budget_schedule(step)
        if is_decided or step <= 3:
            assert budget.at(step) == allowed, step
