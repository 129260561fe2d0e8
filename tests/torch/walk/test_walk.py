"""Random walks of what users do with a host that has adapters, against the oracle.

`WALKS=500` sets the number of walks, and `WALK=17` runs the walk of that seed alone.
"""

import os

import pytest

from tests.thorough import IS_THOROUGH, left_to_laws
from tests.torch.walk import events
from tests.torch.walk.faults import FAULTS, READING
from tests.torch.walk.kinds import KINDS

# torch says these of its own operations, on hosts without adapters too.
pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]
COUNT = int(os.environ.get("WALKS", "0")) or {"laws": 2000, "mutants": 10}.get(
    os.environ.get("HYPOTHESIS_PROFILE", ""), 30
)
CHUNK = 10 if COUNT <= 100 else 50  # walks per test, so that the processes of pytest-xdist share them
ONE = os.environ.get("WALK")
SEEDS = [range(int(ONE), int(ONE) + 1)] if ONE else [range(at, min(at + CHUNK, COUNT)) for at in range(0, COUNT, CHUNK)]


def fail(kind, steps, seed, folder, error):
    """Fail with the walk, and with the shortest one that is left when events are dropped."""
    fewer, shorter = events.shrink(kind, steps, seed, folder)
    pytest.fail(f"WALK={seed}\n{error}\n\nShrunk to {[name for _, name in fewer]}:\n{shorter}", pytrace=False)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_every_event_does_what_the_oracle_says(seeds, tmp_path):
    for seed in seeds:
        kind, names = events.plan(seed)
        steps = list(enumerate(names))
        try:
            events.run(kind, steps, seed, tmp_path)
        except events.WalkError as error:
            fail(kind, steps, seed, tmp_path, error)


def outcome(kind, steps, seed, folder):
    """Run a walk; return the event at which it failed, if it did, and the error or what was done."""
    try:
        return "", "\n".join(events.run(kind, steps, seed, folder))
    except events.WalkError as error:
        return error.event, str(error)


@left_to_laws("it takes minutes")
@pytest.mark.parametrize("name", events.EVENTS)
def test_each_event_notices_its_fault(name, tmp_path, monkeypatch):
    """Under the fault a short walk fails. Without the event it does not, or only at the end, where all is detached."""
    fault = FAULTS[name]
    steps = list(enumerate([*fault.before, name, *fault.after]))
    others = [step for step in steps if step[1] != name]
    tried = []
    for seed in range(40):
        failed, log = outcome(fault.kind, steps, seed, tmp_path)
        assert not failed, log
        if f"\n{len(fault.before)} {name}: " not in log:
            continue  # there was nothing to do it with
        with monkeypatch.context() as patch:
            fault.plant(patch)
            alone, _ = outcome(fault.kind, others, seed, tmp_path)
            noticed, error = outcome(fault.kind, steps, seed, tmp_path)
        if noticed and (not alone or (alone, noticed) == ("close", name)):
            return
        tried.append(f"{seed}: {noticed or 'not noticed'}, without it {alone or 'not noticed'}\n{error}")
    pytest.fail("\n\n".join(["no walk noticed the fault by this event", *tried[:3]]))


@pytest.mark.parametrize("name", list(READING)[: None if IS_THOROUGH else 4])
def test_walks_notice_what_goes_wrong_with_a_weight_that_is_read(name, tmp_path, monkeypatch):
    fault = READING[name]
    steps = list(enumerate(fault.before))
    for seed in range(40):
        failed, log = outcome(fault.kind, steps, seed, tmp_path)
        assert not failed, log
        with monkeypatch.context() as patch:
            fault.plant(patch)
            noticed, _ = outcome(fault.kind, steps, seed, tmp_path)
        if noticed and noticed != "close":
            return
    pytest.fail("no walk noticed the fault")


def test_every_event_has_a_fault():
    assert FAULTS.keys() == events.EVENTS.keys()


def test_the_walks_reach_every_host_and_every_event():
    walks = [events.plan(seed) for seed in range(300)]
    assert {kind for kind, _ in walks} == KINDS.keys()
    assert {name for _, names in walks for name in names} == events.EVENTS.keys()


def test_a_failing_walk_is_shrunk_to_the_events_that_it_needs(tmp_path, monkeypatch):
    FAULTS["merge"].plant(monkeypatch)
    steps = list(enumerate(["no_grad", "attach", "train", "merge", "tell"]))
    fewer, error = events.shrink("mlp", steps, 3, tmp_path)
    assert [name for _, name in fewer] == ["attach", "merge"]
    assert "after merge" in str(error)
