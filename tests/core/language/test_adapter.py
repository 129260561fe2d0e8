"""Adapters: the entries of params, which groups share them, and what they do not hold but the update uses."""

import pytest
from hypothesis import given

from tnadapt import AdapterSpec, Site, SiteError, count, families, frozen, grid, init, same, trainable, zeros
from tnadapt.binding import Block
from tnadapt.initializers import Initializer, host, orthogonal
from tnadapt.testing import adapters, start_params

SITES = grid(layers=2, kinds={"q": (4, 6), "up": (8, 6)})


def own(**words):
    factors = {"A": trainable("r in"), "B": trainable("out r", init=zeros())}
    return AdapterSpec(**({"name": "own", "weight": "out in", "factors": factors} | words))


def test_the_repr_of_an_adapter_leaves_out_the_groups():
    assert "groups=" not in repr(own().bind(SITES, rank=2))


def test_blocks_of_a_weight_that_overlap_are_refused():
    block = Block("w", (8, 6), (0, 0)), Block("w", (8, 6), (2, 0))
    sites = [Site(f"w[{n}]", (4, 6), {"kind": str(n)}, at) for n, at in enumerate(block)]
    with pytest.raises(SiteError, match=r"w.*overlap|w.*same entr"):
        own().bind(sites, rank=2)


def test_a_factor_of_the_whole_adapter_has_the_largest_size_of_each_mode():
    sites = [Site("a", (9, 2)), Site("b", (3, 8)), Site("c", (4, 4))]
    slots = families.vera().bind(sites, rank=2).slots
    assert (slots["A"].shape, slots["B"].shape, slots["A"].group) == ((2, 8), (9, 2), "")
    assert dict(slots["A"].sizes) == {"out": 9, "in": 8, "r": 2}
    assert (slots["0.b.b"].shape, slots["0.b.b"].group, slots["0.b.b"].inner) == ((3,), "0.b", ("out",))


def test_a_shared_factor_is_one_entry_at_the_largest_sizes():
    factors = {
        "A": trainable("r in", shared=True),
        "B": trainable("out r", init=zeros()),
        "C": trainable("r", shared=True),
    }
    adapter = own(factors=factors).bind(SITES, rank={"r": 3})
    assert [name for name, slot in adapter.slots.items() if not slot.group] == ["A", "C"]
    assert (adapter.slots["A"].shape, adapter.slots["C"].shape) == ((3, 6), (3,))
    assert count(adapter).trainable == 3 * 6 + 3 + 3 * (4 + 8) * 2
    assert {name: value.shape for name, value in init(adapter).items()} == {
        n: s.shape for n, s in adapter.slots.items()
    }
    apart = own().bind(SITES, rank=3)
    assert count(apart).trainable == 4 * 3 * 6 + 3 * (4 + 8) * 2


def test_a_shared_factor_starts_alike_whatever_sites_the_others_are():
    """It draws from the stream of its own name, so that its leading part does not depend on the groups."""
    factors = {"A": trainable("r in", shared=True), "B": trainable("out r", init=zeros())}
    one, all_of_them = (own(factors=factors).bind(sites, rank=3, seed=2) for sites in (SITES[:1], SITES))
    assert (init(one)["A"] == init(all_of_them)["A"]).all()


def test_the_text_of_a_spec_says_what_is_shared_by_all():
    lines = str(own(over="layer", factors={"A": trainable("r in", shared=True), "B": trainable("out r", init=zeros())}))
    assert "  one for the whole adapter: A" in lines.splitlines()
    assert "  shared by the sites of a network: B" in lines.splitlines()


def test_the_text_of_a_spec_shows_its_terms():
    factors = {
        "A": trainable("r in"),
        "B": trainable("out r"),
        "A0": same("A", at_start=True),
        "B0": same("B", at_start=True),
    }
    lines = str(own(factors=factors, terms=["B A", "- B0 A0"])).splitlines()
    assert lines[1:6] == [
        '  A   trainable "r in" normal(std=1)',
        '  B   trainable "out r" normal(std=1)',
        "  A0  same as A at the start",
        "  B0  same as B at the start",
        "  terms  B A - B0 A0",
    ]


@given(adapter=adapters())
def test_copies_and_starts_are_neither_counted_nor_entries(adapter):
    plain = {name.rpartition(".")[2] for name in adapter.slots}
    assert plain == {*adapter.spec.arrays}
    assert count(adapter).trainable == sum(
        value.size
        for name, value in start_params(adapter).items()
        if name in adapter.slots and adapter.slots[name].factor.trainable
    )


@pytest.mark.parametrize("start", ["free", "centered"])
@pytest.mark.parametrize(
    "factor", [trainable("r in"), trainable("r in", init=Initializer("svd", 1.0)), trainable("r in", init=orthogonal())]
)
def test_only_starts_that_are_read_from_the_host_are_entries(factor, start):
    adapter = own(factors={"A": factor, "B": trainable("out r")}, start=start).bind(SITES[:1], rank=2)
    starts = ["A:start", "B:start"] if start == "centered" else []
    assert list(adapter.starts) == starts
    assert list(adapter.slots) == ["A", "B", *(["A:start"] if starts and factor.init.is_read else [])]


def test_the_weight_of_the_host_is_an_entry_of_params_and_of_no_file():
    factors = {"W": frozen("out in", init=host()), "A": trainable("out", init=zeros())}
    adapter = own(factors=factors).bind(SITES[:2])
    assert list(adapter.hosts) == ["layers.0.q:host", "layers.0.up:host"]
    assert [site.path for site, _ in adapter.hosts.values()] == ["layers.0.q", "layers.0.up"]
    assert list(adapter.slots) == ["0.q.A", "0.up.A"]
    assert count(adapter).frozen == 0
    assert own().bind(SITES, rank=2).hosts == {}


def test_the_weight_is_an_entry_wherever_a_part_of_its_svd_is():
    factors = {
        "U": frozen("out k", init=host("left")),
        "V": frozen("k in", init=host("right")),
        "s": trainable("k", init=zeros()),
    }
    adapter = own(factors=factors).bind(SITES[:1])
    assert list(adapter.hosts) == ["layers.0.q:host", "layers.0.q:host_left", "layers.0.q:host_right"]
    assert (adapter.networks[0].sizes["k"], adapter.spec.free_bonds) == (4, ())
    assert adapter.slots["s"].shape == (4,)


def test_a_factor_shared_by_groups_has_no_group_in_its_name():
    adapter = families.vera().bind([Site("a", (9, 2)), Site("b", (3, 8))], rank=2)
    assert [adapter.slot_name(group, "A") for group in adapter.groups] == ["A", "A"]
    assert [adapter.slot_name(group, "d") for group in adapter.groups] == ["0.a.d", "0.b.d"]
