"""AdaLoRA's budget: its curve, its scores, one slice for each bond, ties, and a state that goes on bit for bit."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.policies.changes import distance, gradients_of, size, updates
from tests.thorough import each_kind
from tnadapt import SiteError
from tnadapt.policies import Budget, bonds, cut, hide, importance

SIZES = {"0.q.r": 4, "1.q.r": 4, "2.q.r": 4}


def importances(random, sizes):
    return {name: random.standard_normal(size) for name, size in sizes.items()}


def play(budget, steps, seed=0, sizes=SIZES):
    """Take steps, with importances drawn for the slices that are left; return the sizes after each."""
    seen, sizes = [], dict(sizes)
    for time in range(budget.time, budget.time + steps):
        keep = budget.step(importances(np.random.default_rng([seed, time]), sizes))
        assert all(len(places) < sizes[name] for name, places in keep.items())
        sizes |= {name: len(places) for name, places in keep.items()}
        seen.append(dict(sizes))
    return seen


@given(
    sizes=st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 9), min_size=1, max_size=5),
    data=st.data(),
)
def test_the_budget_is_never_exceeded_and_the_end_is_the_target(sizes, data):
    total = sum(sizes.values())
    target = data.draw(st.integers(len(sizes), total))
    steps = data.draw(st.integers(1, 30))
    warmup = data.draw(st.integers(0, steps - 1))
    final = data.draw(st.integers(0, steps - 1 - warmup))
    every = data.draw(st.integers(1, 7))
    budget = Budget(target=target, steps=steps, warmup=warmup, final=final, every=every)
    seen = play(budget, steps, sizes=sizes)
    allowed = total
    for time, now in enumerate(seen, start=1):
        is_decided = time > warmup and (time % every == 0 or time >= steps - final)
        allowed = budget.at(time) if is_decided else allowed
        assert sum(now.values()) == allowed, time
        assert min(now.values()) >= 1
    assert sum(seen[-1].values()) == target


@each_kind
def test_a_family_is_cut_to_its_target(adapter, moved):
    """Importance, decision and cut together; hidden slices give the same updates, where they can be hidden."""
    able = {name for name, reason in bonds(adapter, "cut").items() if reason == "ok"}
    able &= {name for name, reason in bonds(adapter, "importance").items() if reason == "ok"}
    if not able:
        return
    params, now, parts, whole = moved(adapter), adapter, moved(adapter), {}
    total = sum(
        len(value) for name, value in importance(adapter, params, gradients_of(adapter, params)).items() if name in able
    )
    budget = Budget(target=max(len(able), total // 2), steps=4)
    for _ in range(4):
        found = importance(now, parts, gradients_of(now, parts))
        keep = budget.step({name: found[name] for name in able})
        for name, places in keep.items():
            before = whole.get(name, range(len(found[name]) if name not in whole else 0))
            whole[name] = [before[place] for place in places]
        if keep:
            change = cut(now, parts, keep)
            now, parts = change.adapter, change.params
        found = importance(now, parts, gradients_of(now, parts))
        assert sum(len(found[name]) for name in able) == budget.at(budget.time)
    assert sum(len(found[name]) for name in able) == budget.target
    if whole and all(bonds(adapter, "hide")[name] == "ok" for name in whole):
        masks = hide(adapter, whole)
        hidden = {entry: value * masks.get(entry, 1.0) for entry, value in params.items()}
        assert distance(updates(now, parts), updates(adapter, hidden)) <= 1e-11 * size(adapter, params)


def test_the_curve_is_that_of_adalora():
    budget = Budget(target=4, steps=100, warmup=10, final=20)
    budget.step({"a": np.ones(12)})
    assert [budget.at(time) for time in (1, 10, 80, 99)] == [12, 12, 4, 4]
    assert budget.at(45) == int(4 + 8 * (1 - 35 / 70) ** 3)


def test_the_scores_are_those_of_pefts_adalora():
    """The running means as in PEFT's RankAllocator.update_ipt, for one number a slice."""
    random = np.random.default_rng(0)
    budget = Budget(target=2, steps=9, warmup=8, betas=(0.7, 0.9))
    mean = deviation = np.zeros(3)
    for _ in range(5):
        value = np.abs(random.standard_normal(3))
        mean = 0.7 * mean + 0.3 * value
        deviation = 0.9 * deviation + 0.1 * np.abs(value - mean)
        budget.step({"a": -value})
    np.testing.assert_allclose(budget.mean["a"], mean, rtol=1e-15)
    np.testing.assert_allclose(budget.deviation["a"], deviation, rtol=1e-15)


def test_the_slices_of_the_largest_scores_stay():
    budget = Budget(target=3, steps=1, betas=(0.5, 0.5))
    assert budget.step({"b": [0.1, 5.0, 4.0], "a": [0.2, 0.3]}) == {"a": (1,), "b": (1, 2)}


def test_each_bond_keeps_a_slice_and_equal_scores_keep_the_first_ones():
    assert Budget(target=3, steps=1).step({"b": np.zeros(3), "a": np.zeros(2)}) == {"b": (0,)}
    assert Budget(target=2, steps=1).step({"b": np.zeros(3), "a": 9 * np.ones(2)}) == {"a": (0,), "b": (0,)}


def test_the_order_of_bonds_does_not_matter():
    one, other = Budget(target=5, steps=4), Budget(target=5, steps=4)
    given_ = importances(np.random.default_rng(0), SIZES)
    assert one.step(given_) == other.step(dict(reversed(given_.items())))


def test_a_state_goes_on_bit_for_bit():
    whole, first = (Budget(target=5, steps=12, warmup=2, every=2) for _ in range(2))
    wanted = play(whole, 12)
    seen = play(first, 7)
    resumed = Budget(target=5, steps=12, warmup=2, every=2)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert seen + play(resumed, 5, sizes=seen[-1]) == wanted
    assert resumed.state_dict() == whole.state_dict()
    with pytest.raises(SiteError, match=r"Budget: expected the state of a schedule with the arguments .*'target': 4"):
        Budget(target=4, steps=12, warmup=2, every=2).load_state_dict(first.state_dict())
    with pytest.raises(SiteError, match=r"Budget: expected a state of asked, deviation, initial, mean, time, got 3"):
        resumed.load_state_dict(3)


@pytest.mark.parametrize(("words", "match"), [
    ({"target": 0}, r"Budget: expected an integer of at least 1 as target, got 0"),
    ({"target": True}, r"as target, got True"),
    ({"warmup": -1}, r"Budget: expected an integer of at least 0 as warmup, got -1"),
    ({"every": 0}, r"as every, got 0"),
    ({"betas": 0.5}, r"Budget: expected two numbers as betas, got 0.5"),
    ({"betas": (0.5, 1.0)}, r"Budget: expected a number from 0 to 1, without 1, as beta2, got 1.0"),
    ({"warmup": 6, "final": 4}, r"Budget: expected a step between warmup and final, got 6 \+ 4 of 10"),
    ({"rank": 3}, r"Budget: expected a known argument, got 'rank'"),
])  # fmt: skip
def test_wrong_arguments(words, match):
    with pytest.raises(SiteError, match=match):
        Budget(**{"target": 4, "steps": 10} | words)


@pytest.mark.parametrize(("given_", "match"), [
    ({}, r"Budget: expected the importances of at least one bond, got a dict"),
    ({"a": [1.0, np.nan, 1, 1]}, r"Budget: expected a finite number for each slice of 'a'"),
    ({"a": [1.0] * 3}, r"Budget: expected 4 slices of 'a', as before, got 3"),
    ({"b": [1.0] * 4}, r"Budget: expected 4 slices of 'a', as before, got 0"),
])  # fmt: skip
def test_wrong_importances_change_nothing(given_, match):
    budget = Budget(target=2, steps=10, warmup=5)
    budget.step({"a": np.ones(4)})
    before = budget.state_dict()
    with pytest.raises(SiteError, match=match):
        budget.step(given_)
    assert budget.state_dict() == before


@pytest.mark.parametrize(("target", "match"), [(1, "to 4, the slices that there are, got 1"), (5, "got 5")])
def test_a_target_that_cannot_be_is_refused(target, match):
    budget = Budget(target=target, steps=10)
    with pytest.raises(SiteError, match=match):
        budget.step({"a": np.ones(2), "b": np.ones(2)})
    assert budget.time == 0
    with pytest.raises(SiteError, match="expected a schedule that has begun"):
        budget.at(3)
