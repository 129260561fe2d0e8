"""TriAdaptLoRA's growth: who grows, how many of them, the target, and a state that goes on."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.policies.changes import distance, size, updates
from tests.thorough import each_kind
from tnadapt import SiteError
from tnadapt.policies import Growth, bonds, grow, units


def play(growth, ranks, norms, steps, limits=None):
    seen, ranks = [], dict(ranks)
    for _ in range(steps):
        more = growth.step(norms(growth.time) if growth.is_due else {}, ranks, limits)
        ranks = {name: rank + more.get(name, 0) for name, rank in ranks.items()}
        seen.append(dict(ranks))
    return seen


@given(
    ranks=st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 4), min_size=1, max_size=5),
    more=st.integers(0, 20),
    steps=st.integers(1, 20),
    words=st.fixed_dictionaries(
        {"every": st.integers(1, 5), "add": st.integers(1, 4), "pace": st.sampled_from(["linear", "exponential"])}
    ),
    seed=st.integers(0, 99),
)
def test_ranks_never_fall_or_exceed_the_target_and_end_there(ranks, more, steps, words, seed):
    target = sum(ranks.values()) + more
    growth = Growth(target=target, steps=steps, **words)

    def norms(time):
        drawn = np.random.default_rng([seed, time]).random(len(ranks))
        return dict(zip(ranks, drawn, strict=True))

    seen = play(growth, ranks, norms, steps + 2)
    for before, after in zip([ranks, *seen], seen, strict=False):
        assert all(before[name] <= after[name] for name in ranks)
        assert sum(after.values()) <= target
    assert sum(seen[-1].values()) == target
    assert seen[-1] == seen[steps - 1]


@each_kind
def test_a_family_grows_to_its_target_and_the_update_stays(adapter, moved):
    if "ok" not in bonds(adapter, "grow").values():
        return
    params, now = moved(adapter), adapter
    wanted, bound = updates(adapter, params), size(adapter, params)
    limits = {name: unit.limit for name, unit in units(adapter).items() if unit.limit is not None}
    ranks = {name: unit.rank for name, unit in units(adapter).items()}
    most = sum(limits.values()) - sum(ranks.values()) if len(limits) == len(ranks) else 3
    growth = Growth(target=sum(ranks.values()) + min(3, most), steps=4, every=2)
    for _ in range(4):
        found = units(now)
        norms = {n: float(np.sqrt(sum((params[e] ** 2).sum() for e in u.entries))) for n, u in found.items()}
        more = growth.step(norms, {name: unit.rank for name, unit in found.items()}, limits)
        if by := {bond: number for name, number in more.items() for bond in found[name].bonds}:
            change = grow(now, params, by)
            now, params = change.adapter, change.params
            assert distance(wanted, updates(now, params)) <= 1e-12 * bound
    assert sum(unit.rank for unit in units(now).values()) == growth.target


def test_the_units_whose_norm_rose_most_grow_first():
    growth = Growth(target=9, steps=10, every=2, add=2)
    ranks = {"a": 1, "b": 1, "c": 1}
    assert growth.step({}, ranks) == {}
    assert growth.step({"a": 1.0, "b": 3.0, "c": 2.0}, ranks) == {"b": 2}  # int(0.2 * 6) = 1 unit
    growth.step({}, ranks | {"b": 3})
    # n / k less the value before: a 5 / 2 - 1 = 1.5, b 4 / 2 - 3 = -1, c 6 / 2 - 2 = 1
    assert growth.step({"a": 5.0, "b": 4.0, "c": 6.0}, ranks | {"b": 3}) == {"a": 2}


def test_the_number_of_units_is_that_of_the_paper():
    for pace, wanted in (("linear", int(0.5 * 20)), ("exponential", int(20**0.5))):
        growth = Growth(target=40, steps=10, every=5, pace=pace)
        ranks = {f"{number:02}": 1 for number in range(20)}
        norms = dict.fromkeys(ranks, 1.0)
        found = play(growth, ranks, lambda time, own=norms: own, 5)
        assert sum(found[-1].values()) - 20 == wanted, pace


def test_nothing_grows_in_the_warm_up():
    growth = Growth(target=9, steps=6, warmup=4)
    seen = play(growth, {"a": 1, "b": 1}, lambda time: {"a": 1.0, "b": 1.0}, 6)
    assert [sum(ranks.values()) for ranks in seen[:4]] == [2, 2, 2, 2]
    assert sum(seen[-1].values()) == 9


def test_limits_hold():
    growth = Growth(target=7, steps=1, add=4)
    assert growth.step({"a": 9.0, "b": 1.0}, {"a": 1, "b": 1}, {"a": 2}) == {"a": 1, "b": 4}
    with pytest.raises(SiteError, match="Growth: expected a target of at most 4, which the ranks can be, got 7"):
        Growth(target=7, steps=1).step({"a": 1.0, "b": 1.0}, {"a": 1, "b": 1}, {"a": 2, "b": 2})


def test_a_state_goes_on():
    def norms(time):
        return {"a": float(time), "b": 3.0, "c": 7.0 / (time + 1)}

    ranks = dict.fromkeys("abc", 1)
    whole, first, resumed = (Growth(target=12, steps=9, every=2) for _ in range(3))
    wanted = play(whole, ranks, norms, 9)
    seen = play(first, ranks, norms, 5)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert seen + play(resumed, seen[-1], norms, 4) == wanted
    with pytest.raises(SiteError, match=r"Growth: expected the state of a schedule with the arguments .*'add': 2"):
        Growth(target=12, steps=9, every=2, add=2).load_state_dict(first.state_dict())


@pytest.mark.parametrize(("words", "match"), [
    ({"target": 0}, r"Growth: expected an integer of at least 1 as target, got 0"),
    ({"warmup": 10}, r"Growth: expected a step after warmup, got 10 of 10"),
    ({"pace": "fast"}, r"Growth: expected one of 'linear', 'exponential' as pace, got 'fast'"),
])  # fmt: skip
def test_wrong_arguments(words, match):
    with pytest.raises(SiteError, match=match):
        Growth(**{"target": 4, "steps": 10} | words)


@pytest.mark.parametrize(("norms", "ranks", "match"), [
    ({"a": 1.0}, {}, r"Growth: expected the rank of at least one unit, got none"),
    ({"a": 1.0}, {"a": 5}, r"Growth: expected ranks of at most 4, the target, got 5"),
    ({"b": 1.0}, {"a": 1}, r"Growth: expected a finite norm of 'a', got None"),
    ({"a": float("nan")}, {"a": 1}, r"Growth: expected a finite norm of 'a', got nan"),
])  # fmt: skip
def test_wrong_ranks_change_nothing(norms, ranks, match):
    growth = Growth(target=4, steps=10)
    with pytest.raises(SiteError, match=match):
        growth.step(norms, ranks)
    assert growth.time == growth.growths == 0
