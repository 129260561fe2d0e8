"""Gates on sites: the same update at the start, one number for each site, and what the loss depends on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.policies.changes import SITES, distance, gradients_of, pulls, size, updates
from tests.table import FAMILIES
from tnadapt import SiteError, SpecError, count, families, init
from tnadapt.policies import gated, select
from tnadapt.testing import adapters, random_params

EXACT = 1e-10


def rebound(adapter):
    """The adapter of the gated spec, with the sizes of another one."""
    words = {"rank": adapter.rank, "sizes": dict(adapter.sizes), "seed": adapter.seed, "overparametrized": True}
    return gated(adapter.spec).bind(adapter.sites, **words)


def expect_a_number_for_each_site(adapter, params):
    gates = rebound(adapter)
    assert count(gates).trainable == count(adapter).trainable + len(adapter.sites)
    values = dict(params)
    values |= {name: np.ones(slot.shape) for name, slot in gates.slots.items() if name not in params}
    scale = size(adapter, params)
    assert distance(updates(adapter, params), updates(gates, values)) <= EXACT * scale
    pull, gradients = pulls(gates), gradients_of(gates, values)
    found = updates(gates, values)
    for site in gates.sites:
        group, _ = gates.find(site)
        index = tuple(group.index(site)[mode] for mode in gates.spec.site_modes)
        told = float(gradients[gates.slot_name(group, "gate")][index])  # at g = 1
        wanted = (found[site.path] * pull[site.path]).sum()
        assert told == pytest.approx(wanted, rel=1e-8, abs=EXACT * scale * found[site.path].size * 10)


@pytest.mark.parametrize("name", [name for name, case in FAMILIES.items() if case.spec.start != "centered"])
def test_the_gate_of_a_family_tells_what_the_loss_depends_on(name, moved):
    from tests.core.conftest import KINDS

    adapter = FAMILIES[name].bind(layers=2, kinds=KINDS, seed=5)
    if adapter.hosts or adapter.starts:
        assert gated(adapter.spec).factors["gate"].trainable
        return
    expect_a_number_for_each_site(adapter, moved(adapter))


@given(adapter=adapters(), seed=st.integers(0, 2**16))
def test_the_gate_of_a_random_spec_tells_what_the_loss_depends_on(adapter, seed):
    expect_a_number_for_each_site(adapter, random_params(adapter, np.random.default_rng(seed)))


def test_the_start_is_that_of_the_spec():
    adapter = gated(families.loretta(out_order=1, in_order=1, start="centered")).bind(SITES, rank=2)
    assert all(not update.any() for update in updates(adapter, init(adapter)).values())
    assert init(adapter)["0.q.gate"] == 1.0


@pytest.mark.parametrize("spec", [families.lora(), families.lorta(over="layer kind")], ids=["alone", "stacked"])
def test_the_sites_of_the_largest_gates_stay(spec):
    adapter = gated(spec).bind(SITES, rank=2, sizes={"head": 1} if spec.over else None)
    params = init(adapter)
    for number, name in enumerate(name for name in params if name.endswith("gate")):
        params[name] = params[name] * (number + 1.0)
    gate = np.array([[0.5, -3.0], [2.0, 0.1], [1.0, 1.0]])
    if spec.over:
        params["gate"] = gate
    else:
        params |= {f"{place}.{kind}.gate": gate[place, n] for place in range(3) for n, kind in enumerate("qk")}
    assert select(adapter, params, 2) == ("layers.0.k", "layers.1.q")
    assert select(adapter, params, 3) == ("layers.0.k", "layers.1.q", "layers.2.q")
    gradients = {name: np.ones(np.shape(value)) for name, value in params.items()}
    gradients |= {name: value * 0 for name, value in gradients.items() if name == "0.k.gate"}
    if spec.over:
        gradients["gate"][0, 1] = 0.0
    assert select(adapter, params, 1, gradients) == ("layers.1.q",)


@pytest.mark.parametrize(("act", "match"), [
    (lambda a, p: select(a, p, 7), r"select: expected at most the 6 sites to stay, got 7"),
    (lambda a, p: select(a, p, 0), r"select: expected an integer of at least 1 as keep, got 0"),
    (lambda a, p: select(a, p, 1, {}), r"select: expected the gradient of '0.q.gate', got none"),
    (lambda a, p: select(a, {}, 1), r"select: expected the array of '0.q.gate', got none"),
    (lambda a, p: select(a, p | {"0.q.gate": np.nan}, 1), r"select: expected finite gates, got nan"),
    (lambda a, p: select(families.lora().bind(SITES, rank=2), p, 1), r"an adapter of gated\(spec\), got one of lora"),
])  # fmt: skip
def test_what_cannot_be_selected(act, match):
    adapter = gated(families.lora()).bind(SITES, rank=2)
    with pytest.raises(SiteError, match=match):
        act(adapter, init(adapter))


def test_what_cannot_be_gated():
    with pytest.raises(SpecError, match=r"gated: expected a spec, got 3"):
        gated(3)
    with pytest.raises(SpecError, match=r"gated: expected a spec without a factor 'gate'"):
        gated(gated(families.lora()))
