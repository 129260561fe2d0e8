"""Schedules that change the bonds of an attached adapter in training: all families, resumed runs, what is refused."""

import copy
import json

import numpy as np
import pytest
import torch

from tests.thorough import IS_THOROUGH
from tests.torch import hosts
from tests.torch.alone import run_alone
from tnadapt import SiteError, families
from tnadapt.policies import Budget, Growth, Rounding, bonds, importance, units
from tnadapt_torch import attach, load
from tnadapt_torch.policies import BudgetSchedule, GrowthSchedule, RoundingSchedule

STEPS, STOP = 12, 7
each_family = pytest.mark.parametrize("family", hosts.FAMILIES if IS_THOROUGH else hosts.PLANNED_AT_ONCE)


def adapted(family="lora", *, double=True, rate=1e-2, **more):
    model = hosts.toy()
    state = hosts.wake(hosts.adapt(model, family, **more))
    model = model.double() if double else model
    return model, state, torch.optim.AdamW(state.parameters(), lr=rate)


def train(model, optimizer, schedule, first=0, *, last=STEPS, look=lambda: None):
    for step in range(first, last):
        optimizer.zero_grad()
        model(hosts.words(seed=step)).square().mean().backward()
        optimizer.step()
        schedule.step()
        look()


def sizes(adapter, names):
    from tnadapt_torch.policies._hidden import sizes_of

    return {name: sizes_of(adapter)[name] for name in names}


def budget_of(state, optimizer, share=0.5, **more):
    """A schedule from all slices to about half of them, with one for each bond."""
    first = BudgetSchedule(state, optimizer, Budget(target=1, steps=2), **more)
    now = sizes(state.adapter, first.bonds)
    target = max(len(now), int(share * sum(now.values())))
    policy = Budget(target=target, steps=10, warmup=1, final=2, every=2)
    return BudgetSchedule(state, optimizer, policy, **more), target


def left(schedule):
    """The slices that are left of each bond, cut or hidden."""
    here = sizes(schedule.state.adapter, schedule.bonds)
    return {name: len(schedule.hidden.alive.get(name, range(size))) for name, size in here.items()}


def expect_moments_of_the_shapes(state, optimizer):
    for value in state.parameters():
        assert optimizer.state[value]["exp_avg"].shape == optimizer.state[value]["exp_avg_sq"].shape == value.shape


@each_family
@pytest.mark.parametrize("shapes", ["change", "keep"])
def test_a_budget_is_kept_and_the_end_is_the_target(family, shapes):
    model, state, optimizer = adapted(family)
    schedule, target = budget_of(state, optimizer, shapes=shapes)
    seen = []

    def look():
        allowed = (
            schedule.policy.initial if schedule.policy.time < 2 else schedule.policy.at(schedule.policy.time // 2 * 2)
        )
        assert sum(left(schedule).values()) <= allowed
        seen.append(sum(left(schedule).values()))

    train(model, optimizer, schedule, look=look)
    assert sum(left(schedule).values()) == target
    assert seen == sorted(seen, reverse=True)
    before = model(hosts.words()).detach()
    schedule.finish()
    hosts.close(model(hosts.words()), before, 1e-9)
    assert sum(sizes(state.adapter, schedule.bonds).values()) == target
    expect_moments_of_the_shapes(state, optimizer)


@each_family
def test_the_importances_are_those_of_the_core(family):
    model, state, optimizer = adapted(family)
    schedule, _ = budget_of(state, optimizer)
    model(hosts.words()).square().mean().backward()
    wanted = importance(state.adapter, state.arrays(), state.gradients())
    for name, found in schedule._importances().items():
        np.testing.assert_allclose(found, wanted[name], rtol=1e-9, atol=1e-12)


def unscaled():
    """A chain of four factors whose scale does not move with a bond, so that hidden and cut slices train alike."""
    from tnadapt import AdapterSpec, normal, trainable, zeros

    factors = {
        "A": trainable("out p", init=normal()),
        "G": trainable("site p q", init=zeros()),
        "B": trainable("q in", init=normal()),
    }
    return AdapterSpec(name="unscaled", weight="out in", over="site", factors=factors)


@pytest.mark.parametrize("kind", ["budget", "rounding"])
def test_hidden_slices_train_as_cut_ones(kind):
    found = []
    for shapes in ("change", "keep"):
        model = hosts.toy().double()
        state = hosts.wake(attach(model, unscaled(), target_modules=["q_proj", "v_proj"], rank=4)).double()
        optimizer = torch.optim.AdamW(state.parameters(), lr=1e-2, weight_decay=0.1)
        if kind == "budget":
            schedule = BudgetSchedule(state, optimizer, Budget(target=9, steps=8), shapes=shapes)
        else:
            schedule = RoundingSchedule(state, optimizer, Rounding({3: 3, 6: 2}), shapes=shapes)
        train(model, optimizer, schedule, last=9)
        assert all(alive for alive in schedule.hidden.alive.values())
        schedule.finish()
        found.append((state, model(hosts.words()).detach()))
    assert found[0][0].adapter.networks == found[1][0].adapter.networks
    hosts.close(found[0][1], found[1][1], 1e-7)


def test_an_optimizer_with_a_state_of_other_shapes_is_refused():
    model, state, optimizer = adapted("lora", rank=4)
    for shapes in ("change", "keep"):
        schedule = RoundingSchedule(state, optimizer, Rounding({1: 1}), shapes=shapes)
        model(hosts.words()).square().mean().backward()
        optimizer.step()
        optimizer.state[next(iter(state.parameters()))]["rows"] = torch.zeros(5)
        expect_nothing_changed(schedule, schedule.step, r"expected means of gradients of shape .*'rows' of shape")


@pytest.mark.parametrize("family", ["lora", "vera", "lorta"])
def test_hidden_slices_stay_0(family):
    model, state, optimizer = adapted(family)
    schedule, _ = budget_of(state, optimizer, shapes="keep")

    def look():
        for name, mask in schedule.hidden._masks.items():
            gone = (mask == 0).expand(state.params()[name].shape)
            value = state.params()[name]
            for tensor in (value, optimizer.state[value]["exp_avg"], optimizer.state[value]["exp_avg_sq"]):
                assert not tensor[gone].any()

    train(model, optimizer, schedule, look=look)
    assert schedule.hidden.alive


@each_family
def test_growth_changes_no_output_and_ends_at_the_target(family):
    model, state, optimizer = adapted(family)
    now = {name: unit.rank for name, unit in units(state.adapter).items()}
    limits = [unit.limit for unit in units(state.adapter).values() if unit.limit is not None]
    most = sum(limits) - sum(now.values()) if len(limits) == len(now) else 3
    policy = Growth(target=sum(now.values()) + min(3, most), steps=9, warmup=2, every=3)
    schedule = GrowthSchedule(state, optimizer, policy, seed=4)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(hosts.words(seed=step)).square().mean().backward()
        optimizer.step()
        before = model(hosts.words()).detach()
        schedule.step()
        hosts.close(model(hosts.words()), before, 1e-10)
    after = {name: unit.rank for name, unit in units(state.adapter).items()}
    assert sum(after.values()) == policy.target
    assert all(after[name] >= now[name] for name in now)
    expect_moments_of_the_shapes(state, optimizer)
    assert policy.time == 0  # it is copied


@each_family
def test_bonds_are_rounded_or_it_is_said_why_not(family):
    model, state, optimizer = adapted(family)
    able = [name for name, reason in bonds(state.adapter, "sweep").items() if reason == "ok"]
    if not able:
        with pytest.raises(SiteError, match=r"RoundingSchedule: expected an adapter with bonds that can be rounded"):
            RoundingSchedule(state, optimizer, Rounding({2: 1}))
        return
    schedule = RoundingSchedule(state, optimizer, Rounding({2: 2, 5: 1}))
    train(model, optimizer, schedule)
    assert {*sizes(state.adapter, able).values()} == {1}
    assert schedule.errors.keys() == {*able}
    expect_moments_of_the_shapes(state, optimizer)


MAKERS = {
    "budget": lambda state, steps: budget_of(state, steps)[0],
    "budget hidden": lambda state, steps: budget_of(state, steps, shapes="keep")[0],
    "growth": lambda state, steps: GrowthSchedule(state, steps, Growth(target=19, steps=10, every=2)),
    "rounding": lambda state, steps: RoundingSchedule(state, steps, Rounding({3: 3, 9: 2})),
    "rounding hidden": lambda state, steps: RoundingSchedule(state, steps, Rounding({3: 3, 9: 2}), shapes="keep"),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("family", ["lora", "lotr"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(kind, family, tmp_path):
    """Interrupted at step 7 of 12: adapter file, state of the schedule, state of the optimizer; a fresh model."""
    ranks = {"lora": {"rank": 2 if kind == "growth" else 4}, "lotr": {"rank": {"p": 4, "q": 4}}}[family]
    model, state, optimizer = adapted(family, double=False, **ranks)
    schedule = MAKERS[kind](state, optimizer)
    train(model, optimizer, schedule, last=STOP)
    state.save(tmp_path / "a.safetensors")
    kept = json.loads(json.dumps(schedule.state_dict()))
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    train(model, optimizer, schedule, first=STOP)

    fresh = hosts.toy()
    resumed = load(fresh, tmp_path / "a.safetensors")
    steps = torch.optim.AdamW(resumed.parameters(), lr=1e-2)
    steps.load_state_dict(torch.load(tmp_path / "o.pt"))
    again = _like(schedule, resumed, steps)
    again.load_state_dict(kept)
    train(fresh, steps, again, first=STOP)
    assert again.state_dict() == schedule.state_dict()
    assert resumed.adapter == state.adapter
    for name, value in state.params().items():
        assert torch.equal(resumed.params()[name], value), name


def _like(schedule, state, optimizer):
    """The same schedule from its beginning, for another adapter."""
    policy = type(schedule.policy)(**_asked(schedule.policy))
    if isinstance(schedule, GrowthSchedule):
        return GrowthSchedule(state, optimizer, policy)
    return type(schedule)(state, optimizer, policy, shapes=schedule.shapes)


def _asked(policy):
    asked = policy.state_dict()["asked"]
    return {"ranks": {int(step): rank for step, rank in asked["ranks"].items()}} if "ranks" in asked else asked


def expect_nothing_changed(schedule, act, match):
    state, before = schedule.state, schedule.state_dict()
    adapter, values = state.adapter, {name: value.clone() for name, value in state.params().items()}
    with pytest.raises(SiteError, match=match):
        act()
    assert state.adapter is adapter
    assert schedule.state_dict() == before
    for name, value in state.params().items():
        assert torch.equal(value, values[name])


def every_schedule(state, optimizer):
    return [
        BudgetSchedule(state, optimizer, Budget(target=12, steps=1)),
        GrowthSchedule(state, optimizer, Growth(target=30, steps=1)),
        RoundingSchedule(state, optimizer, Rounding({1: 1})),
    ]


def test_an_adapter_that_is_merged_or_detached_is_refused():
    model, state, optimizer = adapted("lora", rank=4)
    schedules = every_schedule(state, optimizer)
    model(hosts.words()).sum().backward()
    state.merge()
    for schedule in schedules:
        expect_nothing_changed(
            schedule,
            schedule.step,
            r"that is not merged, got a merged one\.\n.*Call unmerge\(\) first",
        )
        with pytest.raises(SiteError, match=r"that is not merged, got a merged one\.\n.*Call unmerge\(\) first"):
            type(schedule)(state, optimizer, schedule.policy)
    state.unmerge()
    state.detach()
    for schedule in schedules:
        expect_nothing_changed(schedule, schedule.step, r"expected an adapter that is attached to a model, got a det")
        expect_nothing_changed(schedule, schedule.finish, r"expected an adapter that is attached to a model, got a det")


def test_missing_gradients_are_named():
    model, state, optimizer = adapted("lora", rank=4)
    schedule = every_schedule(state, optimizer)[0]
    match = r"BudgetSchedule: expected the gradient of '0.self_attn.q_proj.A', got none.\nCall step\(\) after backward"
    expect_nothing_changed(schedule, schedule.step, match)
    model(hosts.words()).sum().backward()
    schedule.step()


def test_a_step_that_the_adapter_refuses_leaves_the_schedule_as_it_was(monkeypatch):
    model, state, optimizer = adapted("lora", rank=4)
    model(hosts.words()).sum().backward()
    for schedule in every_schedule(state, optimizer):

        def fail(*_):
            raise SiteError("no")

        with monkeypatch.context() as broken:
            broken.setattr(type(state), "resize", fail)
            expect_nothing_changed(schedule, schedule.step, "no")
        assert schedule.policy.time == 0


def step_under_data_parallelism():
    model, state, optimizer = adapted("lora", rank=4)
    wrapper = torch.nn.parallel.DistributedDataParallel(model)
    wrapper(hosts.words()).sum().backward()
    budget, growth, rounding = every_schedule(state, optimizer)
    for schedule in (budget, rounding):
        todo = rf"Or pass shapes=\"keep\" to {type(schedule).__name__}"
        expect_nothing_changed(schedule, schedule.step, rf"put in buckets[\s\S]*{todo}")
    expect_nothing_changed(growth, growth.step, r"wrap it again\.$")
    hidden = BudgetSchedule(state, optimizer, Budget(target=12, steps=1), shapes="keep")
    hidden.step()
    expect_nothing_changed(hidden, hidden.finish, r"DistributedDataParallel has put in buckets")
    before = model(hosts.words()).detach()
    del wrapper
    hidden.finish()
    hosts.close(model(hosts.words()), before, 1e-10)


def test_data_parallelism_needs_shapes_that_stay():
    run_alone(step_under_data_parallelism)


FEW = Budget(target=9, steps=2)


@pytest.mark.parametrize(("act", "match"), [
    (lambda s, o: BudgetSchedule(3, o, FEW), r"BudgetSchedule: expected the state of an adapter, got 3"),
    (lambda s, o: BudgetSchedule(s, 3, FEW), r"BudgetSchedule: expected an optimizer of torch, got 3"),
    (lambda s, o: BudgetSchedule(s, o, Rounding({1: 2})), r"expected a Budget, got a value of type Rounding"),
    (lambda s, o: BudgetSchedule(s, o, FEW, shapes="no"), r"expected 'change' or 'keep' as shapes, got 'no'"),
    (lambda s, o: BudgetSchedule(s, o, FEW, bonds=["x"]), r"expected names of bonds, got 'x'"),
    (lambda s, o: GrowthSchedule(s, o, Growth(target=9, steps=2), bonds=["x"]), r"a bond of lora, got 'x'"),
    (lambda s, o: RoundingSchedule(s, o, Rounding({1: 2}), bond="x"), r"rounded, got lora \(no bond 'x'"),
])  # fmt: skip
def test_wrong_arguments(act, match):
    _, state, optimizer = adapted("lora")
    with pytest.raises(SiteError, match=match):
        act(state, optimizer)


def test_what_cannot_be_cut_is_refused_with_the_reason():
    model = hosts.toy().double()
    state = attach(model, families.pissa(), target_modules=["q_proj"], rank=2)
    optimizer = torch.optim.SGD(state.parameters())
    policy = Budget(target=2, steps=2)
    with pytest.raises(SiteError, match=r"expected a bond that can be cut, got '0.self_attn.q_proj.r': no trained f"):
        BudgetSchedule(state, optimizer, policy, bonds=["r"], shapes="keep")
    with pytest.raises(SiteError, match=r"expected an adapter with a bond that can be cut, got pissa"):
        BudgetSchedule(state, optimizer, policy, shapes="keep")
    with pytest.raises(SiteError, match=r"RoundingSchedule: .*starting values are a factor|several terms"):
        RoundingSchedule(state, optimizer, Rounding({1: 1}))


def test_a_state_that_does_not_fit_is_refused():
    model, state, optimizer = adapted("lora", rank=4)
    schedule, _ = budget_of(state, optimizer)
    train(model, optimizer, schedule)
    fresh, other, steps = adapted("lora", rank=4)
    again, _ = budget_of(other, steps)
    expect_nothing_changed(
        again, lambda: again.load_state_dict(schedule.state_dict()), r"expected a bond '.*' of \d slices"
    )
    expect_nothing_changed(
        again, lambda: again.load_state_dict({}), r"BudgetSchedule: expected a state of policy, alive"
    )
    hidden, _ = budget_of(other, steps, shapes="keep")
    train(fresh, steps, hidden)
    expect_nothing_changed(
        again, lambda: again.load_state_dict(hidden.state_dict()), r"state without hidden slices for shapes=\"change\""
    )
    assert copy.deepcopy(again.state_dict()) == again.state_dict()
