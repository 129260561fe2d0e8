"""Where a site's part of each factor lies in params: one answer, which every reader takes."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.table import FAMILIES
from tnadapt import AdapterSpec, SiteError, families, frozen, grid, trainable, zeros
from tnadapt.initializers import orthogonal
from tnadapt.testing import adapters

KINDS = {"query": (12, 8), "value": (12, 8), "up": (8, 12)}
SITES = grid(layers=2, kinds={"q": (6, 4), "up": (8, 6)})


def numbered(adapter):
    """Params whose entries are numbers, each of them once in its array."""
    return {name: np.arange(np.prod(slot.shape, dtype=int)).reshape(slot.shape) for name, slot in adapter.slots.items()}


def check_parts(adapter):
    """A site reads the leading part of an array, at its own index along the site modes that the factor carries.

    So two sites read the same entries where they agree in these site modes, and no common entry where they do not.
    """
    params = numbered(adapter)
    for group in adapter.groups:
        network = group.network
        for address in map(adapter.address, group.sites):
            assert list(address.parts) == list(network.factors)
            for name, part in address.parts.items():
                held = network.factors[name].held
                leading = params[part.name][tuple(slice(network.sizes[mode]) for mode in held)]
                own = tuple(address.index.get(mode, slice(None)) for mode in held)
                assert np.array_equal(params[part.name][part.cut], leading[own])
                assert np.array_equal(params[part.name][part.stack], leading)
                assert leading.shape == tuple(network.sizes[mode] for mode in held)
                assert part.index == {mode: at for mode, at in address.index.items() if mode in held}


def check_names(adapter):
    """All groups read one array of a frozen factor that is drawn and has no site modes, else each reads its own."""
    for name, factor in adapter.spec.factors.items():
        parts = [adapter.address(group.sites[0]).parts[name] for group in adapter.groups]
        is_drawn = not factor.trainable and not factor.init.is_read
        is_shared = is_drawn and not set(factor.modes) & set(adapter.spec.site_modes)
        assert len({part.name for part in parts}) == (1 if is_shared else len(parts))
        has_start = adapter.spec.start == "centered" and factor.init.is_read
        for part in parts:
            assert adapter.slots[part.name].factor == factor
            assert (part.start in adapter.slots) == (has_start or not factor.trainable)
            assert (part.start == part.name) == (not factor.trainable)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_parts_of_every_family(name):
    adapter = FAMILIES[name].bind(layers=2, kinds=KINDS)
    check_parts(adapter)
    check_names(adapter)


@given(adapter=st.sampled_from(["zero", "centered"]).flatmap(lambda start: adapters(start=start)))
def test_the_parts_of_any_adapter(adapter):
    check_parts(adapter)
    check_names(adapter)


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
    assert list(address.parts) == ["A", "B", "G"]


def test_a_starting_value_is_kept_of_what_is_read_from_the_host():
    parts = families.pissa().bind(SITES[:1], rank=2).address(SITES[0]).parts
    assert [part.start for part in parts.values()] == ["A:start", "B:start"]
    parts = families.vera().bind(SITES[:1], rank=2).address(SITES[0]).parts
    assert (parts["A"].start, parts["d"].start) == ("A", "d:start")  # no entry has the second name


@pytest.mark.parametrize("site", ["layers.9.q", "q", ""])
def test_an_unknown_site_is_refused(site):
    with pytest.raises(SiteError, match=rf"{site}.*\n.*begin with layers\.0\.q"):
        families.lora().bind(SITES, rank=2).address(site)


@pytest.mark.parametrize(
    ("factor", "stored"),
    [
        (trainable("r in"), True),
        (trainable("r in", init=orthogonal()), True),
        (frozen("r in"), False),
        (frozen("r in", init=orthogonal()), True),  # computed by a linear algebra library
    ],
    ids=str,
)
def test_a_file_holds_what_is_not_drawn_again(factor, stored):
    factors = {"A": factor, "B": trainable("out r", init=zeros())}
    adapter = AdapterSpec(name="own", weight="out in", factors=factors).bind(SITES[:1], rank=2)
    assert adapter.slots["A"].is_stored is stored


def test_an_address_and_its_parts_are_values():
    address = families.lora().bind(SITES, rank=2).address(SITES[0])
    for value, field in ((address, "index"), (address.parts["A"], "cut")):
        with pytest.raises(FrozenInstanceError, match=f"cannot assign to field '{field}'"):
            setattr(value, field, ())
