"""Where a site's part of each factor lies in params: one answer, which every reader takes."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.table import FAMILIES
from tnadapt import AdapterSpec, SiteError, families, frozen, grid, same, trainable, zeros
from tnadapt.initializers import orthogonal
from tnadapt.testing import adapters

KINDS = {"query": (12, 8), "value": (12, 8), "up": (8, 12)}
SITES = grid(layers=2, kinds={"q": (6, 4), "up": (8, 6)})


def numbered(adapter):
    """Params and starting values whose entries are numbers, each of them once in its array."""
    shapes = {name: slot.shape for name, slot in {**adapter.slots, **adapter.starts}.items()}
    for address in map(adapter.address, adapter.sites):
        network = address.group.network
        hosts = [part for part in address.parts.values() if part.factor.init.is_host]
        shapes |= {part.name: tuple(network.sizes[mode] for mode in part.factor.modes) for part in hosts}
    return {name: np.arange(np.prod(shape, dtype=int)).reshape(shape) for name, shape in shapes.items()}


def check_parts(adapter):
    """A site reads the leading part of an array, at its own index along the site modes that the factor carries.

    So two sites read the same entries where they agree in these site modes, and no common entry where they do not.
    """
    params = numbered(adapter)
    for group in adapter.groups:
        network = group.network
        for address in map(adapter.address, group.sites):
            assert list(address.parts) == list(network.nodes)
            for name, part in address.parts.items():
                held = network.factors[network.nodes[name].factor].held
                leading = params[part.name][tuple(slice(network.sizes[mode]) for mode in held)]
                own = tuple(address.index.get(mode, slice(None)) for mode in held)
                assert np.array_equal(params[part.name][part.cut], leading[own])
                assert np.array_equal(params[part.name][part.stack], leading)
                assert leading.shape == tuple(network.sizes[mode] for mode in held)
                assert part.index == {mode: at for mode, at in address.index.items() if mode in held}


def check_names(adapter):
    """All groups read one array of a shared factor, or of a frozen one that is drawn, has no site modes and no pattern.

    Of every other factor each group reads its own, and of the host's weight each site. A copy reads the array of its
    factor; a starting value has a name of its own, which is an entry of params only if it was read from the host.
    """
    assert {*adapter.starts} & {*adapter.slots} == {
        name for name, slot in adapter.starts.items() if slot.factor.init.is_read
    }
    for name, node in adapter.networks[0].nodes.items():
        factor = {**adapter.spec.arrays, **adapter.spec.hosts}[node.factor]
        addresses = [adapter.address(site) for site in adapter.sites]
        if factor.init.is_host:
            kind = factor.init.kind
            assert [place.parts[name].name for place in addresses] == [f"{site.path}:{kind}" for site in adapter.sites]
            continue
        parts = [adapter.address(group.sites[0]).parts[name] for group in adapter.groups]
        is_drawn = not (factor.trainable or factor.init.is_read or factor.init.is_pattern)
        is_shared = factor.shared or (is_drawn and not set(factor.modes) & set(adapter.spec.site_modes))
        assert len({part.name for part in parts}) == (1 if is_shared else len(parts))
        for part, group in zip(parts, adapter.groups, strict=True):
            assert part.at_start == node.at_start == part.name.endswith(":start")
            assert part.source == adapter.slot_name(group, node.factor)
            assert part.name == part.source + (":start" if node.at_start else "")
            assert adapter.slots[part.source].factor == part.factor == factor
            if node.at_start:
                assert adapter.starts[part.name].factor == replace(factor, trainable=False)
                assert adapter.starts[part.name].shape == adapter.slots[part.source].shape
                assert (part.name in adapter.slots) == factor.init.is_read


@pytest.mark.parametrize("name", FAMILIES)
def test_the_parts_of_every_family(name):
    adapter = FAMILIES[name].bind(layers=2, kinds=KINDS)
    check_parts(adapter)
    check_names(adapter)


@given(adapter=st.sampled_from(["zero", "centered", "free"]).flatmap(lambda start: adapters(start=start)))
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
    pissa = families.pissa().bind(SITES[:1], rank=2)
    parts = pissa.address(SITES[0]).parts
    assert [(name, part.name) for name, part in parts.items()] == [(n, n) for n in ("A", "A:start", "B", "B:start")]
    assert (list(pissa.slots), list(pissa.starts)) == (["A", "B", "A:start", "B:start"], ["A:start", "B:start"])
    assert [slot.factor.trainable for slot in pissa.slots.values()] == [True, True, False, False]
    assert families.vera().bind(SITES[:1], rank=2).starts == {}


def test_a_starting_value_that_is_drawn_is_no_entry_of_params():
    factors = {"A": trainable("r in"), "B": trainable("out r"), "C": frozen("r"), "C0": same("C", at_start=True)}
    terms = ["B A C", "- B0 A0 C0"]
    factors |= {"A0": same("A", at_start=True), "B0": same("B", at_start=True)}
    adapter = AdapterSpec(name="own", weight="out in", factors=factors, terms=terms).bind(SITES[:1], rank=2)
    assert list(adapter.slots) == ["A", "B", "C"]
    assert list(adapter.starts) == ["A:start", "B:start"]
    parts = adapter.address(SITES[0]).parts
    assert {name: (part.name, part.source) for name, part in parts.items()} == {
        "A": ("A", "A"),
        "A0": ("A:start", "A"),
        "B": ("B", "B"),
        "B0": ("B:start", "B"),
        "C": ("C", "C"),
        "C0": ("C", "C"),  # a frozen factor is its own start
    }


def test_a_copy_reads_the_array_of_its_factor():
    factors = {
        "A": trainable("s in"),
        "B": trainable("out r", init=zeros()),
        "C": trainable("r q"),
        "Ct": same("C", "s q"),
    }
    adapter = AdapterSpec(name="own", weight="out in", factors=factors).bind(SITES[:1], rank=2)
    parts = adapter.address(SITES[0]).parts
    assert (parts["C"], parts["Ct"].name) == (parts["Ct"], "C")
    assert list(adapter.slots) == ["A", "B", "C"]


def test_a_shared_factor_is_read_from_its_leading_part():
    factors = {"A": trainable("r in", shared=True), "B": trainable("out r", init=zeros())}
    adapter = AdapterSpec(name="own", weight="out in", factors=factors).bind(SITES, rank=3)
    q, up = (adapter.address(site) for site in SITES[:2])
    assert (q.parts["A"].name, q.parts["A"].cut) == ("A", (slice(3), slice(4)))
    assert (up.parts["A"].name, up.parts["A"].cut) == ("A", (slice(3), slice(6)))
    assert (adapter.slots["A"].shape, adapter.slots["A"].group) == ((3, 6), "")
    assert [name for name in adapter.slots if name.endswith("A")] == ["A"]


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


def test_only_a_frozen_cyclic_pattern_is_fixed():
    adapter = families.c3a().bind(grid(layers=1, kinds={"q": (4, 4)}), sizes={"o2": 2, "i2": 2})
    assert [name for name, slot in adapter.slots.items() if slot.is_fixed] == ["J"]
    factor = adapter.slots["J"].factor
    for other in (replace(factor, trainable=True), replace(factor, init=orthogonal())):
        assert not replace(adapter.slots["J"], factor=other).is_fixed
