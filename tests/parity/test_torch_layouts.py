"""Every way to lay arrays out agrees with the numpy reference, also where the sizes of a test would choose another."""

from dataclasses import replace

import pytest

pytest.importorskip("torch")

import torch

from tests.parity import sides
from tests.parity.cases import FAMILIES, OWN, SITES
from tests.thorough import IS_THOROUGH
from tnadapt import families, grid, plan
from tnadapt_torch._run import lower
from tnadapt_torch._run.layout import lay_out
from tnadapt_torch._run.ways import MACHINES, Way

# Families whose products have permutations between them, at sizes for which a plan goes factor by factor.
DENSE = {
    "btt": (families.btt(), {"rank": 1}),
    "gralora": (families.gralora(), {"rank": 2, "sizes": {"o1": 3, "i1": 2}}),
    "kadaptation": (families.kadaptation(), {"rank": 2}),
    "krona": (families.krona(), {}),
    "lokr": (families.lokr(), {"rank": 2}),
    "monarch": (families.monarch(), {"rank": 1}),
    "mora": (families.mora(), {}),
    "quanta": (families.quanta(order=3), {"rank": 4}),
    "tera": (families.tera(out_order=2), {"rank": 2}),
    "tt_lora": (families.tt_lora(), {"rank": 2}),
}
PLACES = grid(layers=1, kinds={"q": (36, 64), "up": (90, 60)})
CASES = {name: (spec, PLACES, sizes) for name, (spec, sizes) in DENSE.items()}
if IS_THOROUGH:
    CASES |= {f"small {name}": (spec, SITES, sizes) for name, (spec, sizes) in FAMILIES.items()}
COPIES_NOTHING = replace(MACHINES["cuda"], call=1, function=0, turn=1e3, scatter=1e3)


@pytest.fixture
def laid_out(monkeypatch, request):
    """Lay everything out for so many tokens on a machine; return the list of all ways that are then taken."""
    machine, tokens = request.param
    taken = []

    def observed(order, _=None):
        found = lay_out(order, (MACHINES | {"copies nothing": COPIES_NOTHING})[machine])
        waiting = [way for _, way in found]
        for way in waiting:
            if isinstance(way, Way):
                waiting += [way.left, way.right]
        taken.extend(way for way in waiting if isinstance(way, Way))
        return found

    def for_many(network, ask, **words):
        return plan(network, ask, **words | {"tokens": tokens})

    monkeypatch.setattr(lower, "lay_out", observed)
    monkeypatch.setattr(lower, "plan", for_many)
    for code in (lower.lower_apply, lower.lower_delta):
        code.cache_clear()
    yield taken
    for code in (lower.lower_apply, lower.lower_delta):
        code.cache_clear()


def which(*machines):
    return pytest.mark.parametrize("laid_out", machines, indirect=True, ids=lambda one: f"{one[0]} {one[1]}")


@which(("copies nothing", 1024), *([("copies nothing", 1), ("cpu", 8192), ("cuda", 1024)] if IS_THOROUGH else []))
@pytest.mark.parametrize(("spec", "places", "sizes"), CASES.values(), ids=CASES)
def test_a_family_agrees(spec, places, sizes, laid_out):
    sides.compare(spec, places, torch.float64, **sizes)
    assert laid_out


@which(("copies nothing", 1024))
@pytest.mark.parametrize(
    ("family", "ways"),
    [("monarch", {(True, False)}), ("krona", {(True, True)}), ("quanta", {(True, True)})],
)
def test_the_cases_take_the_ways_that_they_are_there_for(family, ways, laid_out):
    spec, sizes = DENSE[family]
    sides.compare(spec, PLACES, torch.float64, **sizes)
    assert ways <= {(way.strided, way.repeated is not None) for way in laid_out}


@which(("copies nothing", 1024))
@pytest.mark.parametrize("spec", OWN.values() if IS_THOROUGH else [OWN["chain"], OWN["out and in split"]])
def test_a_custom_spec_agrees(spec, laid_out):
    sides.compare(spec, SITES, torch.float64, rank=2)
    assert laid_out
