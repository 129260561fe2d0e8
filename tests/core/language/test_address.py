"""Where a site's part of each factor lies in params: one answer, which every reader takes."""

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.table import FAMILIES
from tnadapt import AdapterSpec, SiteError, families, frozen, grid, trainable, zeros
from tnadapt.binding import START
from tnadapt.testing import adapters, specs, start_params

SITES = grid(layers=2, kinds={"q": (6, 4), "up": (8, 6)})


def check_parts(adapter):
    """Every part has the shape of the network, and sites share entries exactly where the spec says so."""
    numbered = {name: np.arange(value.size).reshape(value.shape) for name, value in start_params(adapter).items()}
    for group in adapter.groups:
        network = group.network
        addresses = [adapter.address(site) for site in group.sites]
        for name, factor in network.factors.items():
            inner = [network.sizes[mode] for mode in factor.held if mode not in network.over]
            seen: dict[tuple[int, ...], np.ndarray] = {}
            for address in addresses:
                part = address.parts[name]
                entries = numbered[part.name][part.cut]
                assert entries.shape == tuple(inner)
                assert part.index == {mode: at for mode, at in address.index.items() if mode in factor.held}
                place = tuple(part.index.values())
                assert np.array_equal(seen.setdefault(place, entries), entries)
            whole = numbered[addresses[0].parts[name].name][addresses[0].parts[name].stack]
            assert whole.shape == tuple(network.sizes[mode] for mode in factor.held)
            if all(math.prod(inner) for _ in seen):
                assert len({entries.flat[0] for entries in seen.values()}) == len(seen)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_parts_of_every_family(name):
    check_parts(FAMILIES[name].bind(layers=2, kinds={"query": (12, 8), "value": (12, 8), "up": (8, 12)}))


@given(data=st.data())
def test_the_parts_of_any_adapter(data):
    check_parts(data.draw(adapters(data.draw(specs()))))


def test_a_factor_of_the_whole_adapter_is_read_from_its_leading_part():
    adapter = families.vera().bind(SITES, rank=3)
    q, up = (adapter.address(site) for site in SITES[:2])
    assert (q.parts["A"].name, q.parts["A"].cut) == ("A", (slice(3), slice(4)))
    assert (up.parts["A"].name, up.parts["A"].cut) == ("A", (slice(3), slice(6)))
    assert adapter.slots["A"].shape == (3, 6)


def test_a_site_mode_becomes_an_index():
    adapter = families.lotr().bind(grid(layers=3, kinds={"q": (6, 4)}), rank=2)
    address = adapter.address("layers.2.q")
    assert address.index == {"site": 2}
    assert address.parts["G"].cut == (2, slice(2), slice(2))
    assert address.parts["G"].stack == (slice(None), slice(2), slice(2))
    assert (address.site, address.group) == (adapter.sites[2], adapter.groups[0])


def test_a_trainable_factor_has_a_start_and_a_frozen_one_is_its_own():
    spec = AdapterSpec(
        name="own",
        weight="out in",
        factors={"A": frozen("r in"), "B": trainable("out r", init=zeros())},
    )
    parts = spec.bind(SITES[:1], rank=2).address(SITES[0]).parts
    assert (parts["A"].start, parts["B"].start) == ("A", "B" + START)


def test_an_unknown_site_is_refused():
    with pytest.raises(SiteError, match=r"layers\.9\.q(.|\n)*layers\.0\.q"):
        families.lora().bind(SITES, rank=2).address("layers.9.q")


def test_an_address_and_its_parts_are_values():
    address = families.lora().bind(SITES, rank=2).address(SITES[0])
    for value, field in ((address, "index"), (address.parts["A"], "cut")):
        with pytest.raises(FrozenInstanceError, match=f"cannot assign to field '{field}'"):
            setattr(value, field, ())
