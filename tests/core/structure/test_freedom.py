"""Degrees of freedom against values known by hand, and against Jacobians at full size."""

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tnadapt import (
    AdapterSpec,
    PlanError,
    Site,
    SiteError,
    count,
    degrees_of_freedom,
    families,
    first_gradients,
    frozen,
    grid,
    raw,
    report,
    trainable,
    zeros,
)
from tnadapt._structure.freedom import Freedom, _degrees
from tnadapt._structure.jacobian import Jacobian
from tnadapt._structure.modular import Budget
from tnadapt.initializers import ones
from tnadapt.testing import adapters


def own(weight, over="", **factors):
    return AdapterSpec(name="own", weight=weight, over=over, factors=factors, scale=raw(), start="free")


CP = own(
    "(h d) i",
    "layer kind",
    **{name: trainable(f"{mode} r") for name, mode in zip("ABCLM", ("i", "d", "h", "layer", "kind"), strict=True)},
)
TRAIN = own("(a b) c", A=trainable("a p"), B=trainable("p b q"), C=trainable("q c"))

OPERATOR = own("(o1 o2 o3) (i1 i2 i3)", A=trainable("o1 i1 p"), B=trainable("p o2 i2 q"), C=trainable("q o3 i3"))

KNOWN = [  # spec, sites, rank, sizes, trainable, degrees: each follows from the gauge group of the bonds
    ("lora: r^2", families.lora(), grid(layers=1, kinds={"q": (8, 8)}), 3, {}, 48, 39),
    ("lotr: 2 r^2", families.lotr(), grid(layers=4, kinds={"q": (8, 8)}), 3, {}, 84, 66),
    ("cp of five ways: 4 r", CP, grid(layers=4, kinds=dict.fromkeys("qkvo", (20, 7))), 4, {"h": 2}, 108, 92),
    ("lokr: r^2 + 1", families.lokr(), grid(layers=1, kinds={"q": (64, 64)}), 2, {}, 96, 91),
    ("tlora: one scalar", families.tlora(), grid(layers=1, kinds={"q": (9, 9)}), 3, {}, 10, 9),
    ("vera: one scalar", families.vera(), grid(layers=1, kinds={"q": (9, 9)}), 3, {}, 12, 11),
    ("tera: five scalars", families.tera(), grid(layers=1, kinds={"q": (8, 8)}), 2, {}, 12, 7),
    # the train has more numbers than the weight, and can move all of its 2 x 2 x 2 entries
    ("train above the weight", TRAIN, [Site("w", (4, 2))], 2, {}, 16, 8),
    ("tensor-product operator of 2 x 2 x 2, bond 2: 2 r^2", OPERATOR, [Site("w", (8, 8))], 2, {}, 32, 24),
    ("train", TRAIN, [Site("w", (9, 3))], 2, {}, 24, 16),
    # loha: GL(r) twice, and scales of rows and columns that move from one pair to the other: 2 r^2 + out + in - 1
    ("loha", families.loha(), grid(layers=1, kinds={"q": (20, 20)}), 2, {}, 160, 160 - 8 - 39),
]


@pytest.mark.parametrize("row", [row[1:] for row in KNOWN], ids=[row[0] for row in KNOWN])
def test_the_degrees_of_freedom_are_those_known_by_hand(row):
    spec, sites, rank, sizes, trained, degrees = row
    adapter = spec.bind(sites, rank=rank, sizes=sizes)
    found = degrees_of_freedom(adapter)
    assert (found.trainable, found.degrees, found.gauge) == (trained, degrees, trained - degrees)
    assert found.trainable == count(adapter).trainable


def test_a_five_way_cp_with_88_numbers_has_72_degrees_of_freedom():
    """The rank is 4, and the sizes add up to 22."""
    adapter = CP.bind(grid(layers=4, kinds=dict.fromkeys("qkv", (12, 7))), rank=4, sizes={"h": 4})
    assert [adapter.networks[0].sizes[mode] for mode in ("i", "d", "h", "layer", "kind")] == [7, 3, 4, 4, 3]
    larger = CP.bind(grid(layers=4, kinds=dict.fromkeys("qkv", (16, 7))), rank=4, sizes={"h": 4})
    assert str(degrees_of_freedom(larger)) == "72 of 88 (gauge 16)"


LARGE = st.sampled_from([1, 5, 9, 12, 15])


@settings(max_examples=30, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(adapter=adapters(lengths=LARGE), data=st.data())
def test_cutting_large_modes_down_changes_nothing(adapter, data):
    group = data.draw(st.sampled_from(adapter.groups))
    network = group.network
    whole = Jacobian(network, True, None, 0, Budget("a test", flops=10**12))
    assume(1 <= whole.entries(network.sizes) <= 400)
    assume(network.volume([*network.over, *network.out_modes, *network.in_modes]) <= 4000)
    degrees = _degrees(network, True, None, 2048, 1).degrees
    assert degrees == whole.rank(network.sizes, whole.trained)


@pytest.mark.parametrize("family", ["lora", "lotr", "loha", "lokr", "vera", "tlora"])
def test_cutting_a_family_down_changes_nothing(family):
    adapter = getattr(families, family)().bind(grid(layers=3, kinds={"q": (25, 16)}), rank=2)
    network = adapter.networks[0]
    whole = Jacobian(network, True, None, 0, Budget("a test", flops=10**12))
    assert _degrees(network, True, None, 2048, 1).degrees == whole.rank(network.sizes, whole.trained)


def test_the_gauge_of_a_7b_model_depends_on_the_rank_alone():
    """LoRA's gauge is r^2 per site at any size. Shared factors have one gauge for all sites."""
    kinds = dict.fromkeys(("q_proj", "v_proj"), (4096, 4096))
    lora = families.lora().bind(grid(layers=32, kinds=kinds), rank=8)
    assert degrees_of_freedom(lora).gauge == 64 * 8**2
    lotr = families.lotr().bind(grid(layers=32, kinds=kinds), rank=4)
    assert degrees_of_freedom(lotr).gauge == 2 * 4**2


def test_a_hole_in_the_grid_counts_only_the_sites_that_are_there():
    spec = own("out in", "layer kind", A=trainable("out layer"), B=trainable("in kind"))
    corners = [Site(f"{layer}.{kind}", (3, 3), {"layer": layer, "kind": kind}) for layer in (0, 1) for kind in "ab"]
    # a column of A and one of B can exchange a scale; there is one such scale, since sites join all four columns
    assert degrees_of_freedom(spec.bind(corners)).degrees == 12 - 1
    diagonal = spec.bind([corners[0], corners[3]])  # two sites that share no column: two scales
    assert degrees_of_freedom(diagonal).degrees == 12 - 2


def test_a_site_counts_only_the_numbers_that_it_reads():
    adapter = families.lotr().bind(grid(layers=4, kinds={"q": (8, 8)}), rank=3)
    found = degrees_of_freedom(adapter, "layers.2.q")
    assert (found.trainable, found.degrees) == (48 + 9, 39)


def test_too_large_a_question_is_refused(monkeypatch):
    adapter = families.loha().bind(grid(layers=1, kinds={"q": (64, 64)}), rank=8)
    with pytest.raises(PlanError, match=r"expected a Jacobian of at most 100 trainable numbers, got \d+\.\nPass a lar"):
        degrees_of_freedom(adapter, limit=100)
    monkeypatch.setattr("tnadapt._structure.freedom.WORK", 1000)
    with pytest.raises(PlanError, match=r"degrees_of_freedom: expected at most 1,000 flops modulo a prime, got more"):
        degrees_of_freedom(adapter)


def test_many_large_modes_are_refused_at_once():
    """A tensor train of ten modes: the cube that proves the cut exact has too many corners."""
    cores = {f"C{n}": trainable(f"b{n} {'oi'[n // 5]}{n} b{n + 1}") for n in range(1, 9)}
    cores |= {"C0": trainable("o0 b1"), "C9": trainable("b9 i9")}
    spec = own("(o0 o1 o2 o3 o4) (i5 i6 i7 i8 i9)", **cores)
    adapter = spec.bind([Site("w", (4096, 4096))], rank=2)
    with pytest.raises(PlanError, match=r"expected at most 8 large modes to cut to smaller sizes, got 10"):
        degrees_of_freedom(adapter)


def test_groups_that_share_a_trained_factor_have_one_jacobian():
    """By hand: the matrix that both weights read is counted once, and so is its gauge."""
    spec = own("out in", A=trainable("r in", shared=True), B=trainable("out r"))
    adapter = spec.bind(grid(layers=1, kinds={"q": (4, 4), "v": (4, 6)}), rank=2)
    assert degrees_of_freedom(adapter) == Freedom(12 + 8 + 8, 28 - 4)
    assert degrees_of_freedom(adapter, adapter.groups[1]).degrees == 2 * (4 + 6) - 4
    assert report(adapter).freedom == degrees_of_freedom(adapter)
    assert report(adapter, limit=27).freedom is None
    with pytest.raises(
        PlanError, match=r"expected at most 27 trainable .*not cut, got 28 with 'A' in 2 groups\.\nAsk about a group"
    ):
        degrees_of_freedom(adapter, limit=27)
    alone = spec.bind(grid(layers=1, kinds={"q": (4, 4)}), rank=2)
    assert report(alone).freedom == degrees_of_freedom(alone)


def test_a_group_of_another_adapter_is_refused():
    one, other = (families.lora().bind([Site("w", (n, n))], rank=2) for n in (8, 9))
    for wrong in (other.groups[0], other.sites[0], 3, other.networks[0]):
        with pytest.raises(SiteError, match="where: expected a site of this adapter, its path, or a group, got "):
            degrees_of_freedom(one, wrong)


def test_no_factor_moves_at_scale_zero():
    adapter = families.lora(alpha=5e-324).bind(grid(layers=1, kinds={"q": (4, 4)}), rank=4)
    assert adapter.networks[0].scale == 0  # alpha / 4 underflows to 0
    assert degrees_of_freedom(adapter).degrees == 0


def test_the_factors_that_move_first_are_those_beside_no_zero_factor():
    assert first_gradients(families.lora()) == ("B",)
    assert first_gradients(families.tera()) == ("d_o3",)
    living = own("out in", A=trainable("out r"), F=frozen("r q", init=ones()), B=trainable("q in"))
    assert first_gradients(living) == ("A", "B")
    dead = own("out in", A=trainable("out r", init=zeros()), B=trainable("r in", init=zeros()))
    assert first_gradients(dead) == ()
