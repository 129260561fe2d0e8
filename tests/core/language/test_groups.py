"""Groups: which sites share a network, how groups are named, and which index a site has."""

import itertools

import pytest

from tnadapt import AdapterSpec, Site, SiteError, families, frozen, grid, init, raw, trainable, zeros
from tnadapt.initializers import controlled_z

MIXED = grid(layers=2, kinds={"q": (4, 6), "k": (4, 6), "up": (8, 6)})
EXPERTS = tuple(
    Site(f"h.{layer}.experts.{expert}.{kind}", (4, 6), {"layer": layer, "kind": kind, "expert": expert})
    for layer, expert, kind in itertools.product((0, 1), (0, 1, 2), ("up", "down"))
)


def own(over):
    """Return a spec with one core per index along the site modes."""
    return AdapterSpec(
        name="own",
        weight="out in",
        over=over,
        factors={"A": trainable("out p"), "G": trainable(f"{over} p q", init=zeros()), "B": trainable("in q")},
        scale=raw(),
    )


def groups(over, sites):
    return {group.name: [site.path for site in group.sites] for group in own(over).bind(sites, rank=2).groups}


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        (
            "",
            {
                "0.q": ["layers.0.q"],
                "0.k": ["layers.0.k"],
                "0.up": ["layers.0.up"],
                "1.q": ["layers.1.q"],
                "1.k": ["layers.1.k"],
                "1.up": ["layers.1.up"],
            },
        ),
        (
            "layer",
            {
                "q": ["layers.0.q", "layers.1.q"],
                "k": ["layers.0.k", "layers.1.k"],
                "up": ["layers.0.up", "layers.1.up"],
            },
        ),
        (
            "kind",
            {
                "0.4x6": ["layers.0.q", "layers.0.k"],
                "0.8x6": ["layers.0.up"],
                "1.4x6": ["layers.1.q", "layers.1.k"],
                "1.8x6": ["layers.1.up"],
            },
        ),
        (
            "layer kind",
            {
                "4x6": ["layers.0.q", "layers.0.k", "layers.1.q", "layers.1.k"],
                "8x6": ["layers.0.up", "layers.1.up"],
            },
        ),
        (
            "site",
            {
                "4x6": ["layers.0.q", "layers.0.k", "layers.1.q", "layers.1.k"],
                "8x6": ["layers.0.up", "layers.1.up"],
            },
        ),
    ],
)
def test_groups_follow_from_over(over, expected):
    assert groups(over, MIXED) == expected


@pytest.mark.parametrize(
    ("over", "number", "sites_each"),
    [
        ("", 12, 1),
        ("layer", 6, 2),
        ("expert", 4, 3),
        ("kind", 6, 2),
        ("layer expert", 2, 6),
        ("layer kind", 3, 4),
        ("layer kind expert", 1, 12),
        ("site", 1, 12),
    ],
)
def test_coordinates_that_are_not_site_modes_separate_groups(over, number, sites_each):
    found = groups(over, EXPERTS)
    assert len(found) == number
    assert {len(paths) for paths in found.values()} == {sites_each}


def test_a_group_is_named_after_its_fixed_coordinates():
    kinds = [f"{kind}.expert_{expert}" for expert in range(3) for kind in ("up", "down")]
    assert [*groups("layer", EXPERTS)] == kinds
    assert [*groups("layer kind", EXPERTS)] == ["expert_0", "expert_1", "expert_2"]
    assert [*groups("expert", EXPERTS)] == ["0.up", "0.down", "1.up", "1.down"]
    assert [*groups("", EXPERTS)][:2] == ["0.up.expert_0", "0.down.expert_0"]
    coordinates = {"task": "sst-2", "kind": "up", "expert": 5, "layer": 3}  # in any order
    assert [*groups("", [Site("x", (4, 6), coordinates)])] == ["3.up.expert_5.task_sst-2"]
    assert [*groups("task layer", [Site("x", (4, 6), coordinates)])] == ["up.expert_5"]


def test_a_group_name_includes_the_shape_if_it_is_not_unique():
    sites = [Site("x", (4, 6), {"kind": "q"}), Site("y", (8, 6), {"kind": "q"}), Site("z", (8, 6), {"kind": "k"})]
    assert groups("layer", sites) == {"q.4x6": ["x"], "q.8x6": ["y"], "k": ["z"]}


def test_params_of_a_single_group_have_no_prefix():
    assert set(init(own("site").bind(EXPERTS, rank=2))) == {"A", "G", "B"}
    names = set(init(own("layer").bind(MIXED, rank=2)))
    assert names == {f"{kind}.{factor}" for kind in ("q", "k", "up") for factor in "AGB"}


def test_indices_have_no_gaps_and_ascend_with_the_coordinate():
    sites = [Site(f"h.{layer}", (4, 6), {"layer": layer, "kind": "q"}) for layer in (11, 3, 7)]
    adapter = own("layer").bind(sites, rank=2)
    (group,) = adapter.groups
    assert dict(group.values) == {"layer": (3, 7, 11)}
    assert [group.index(site)["layer"] for site in sites] == [2, 0, 1]
    assert group.network.sizes["layer"] == 3


def test_numbers_are_sorted_and_names_keep_their_order():
    sites = [
        Site(f"h.{layer}.{kind}", (4, 6), {"layer": layer, "kind": kind}) for layer in (10, 9) for kind in ("v", "k")
    ]
    (group,) = own("layer kind").bind(sites, rank=2).groups
    assert dict(group.values) == {"layer": (9, 10), "kind": ("v", "k")}
    assert group.index(sites[1]) == {"layer": 1, "kind": 1}


def test_the_site_mode_numbers_all_sites():
    (group,) = own("site").bind(EXPERTS, rank=2).groups
    assert [group.index(site)["site"] for site in EXPERTS] == list(range(12))


def test_a_grid_of_indices_may_have_gaps():
    sites = [site for site in grid(layers=2, kinds={"q": (4, 6), "k": (4, 6)}) if site.path != "layers.1.q"]
    (group,) = own("layer kind").bind(sites, rank=2).groups
    assert (group.network.sizes["layer"], group.network.sizes["kind"], len(group.sites)) == (2, 2, 3)


def sites_at(*places):
    """Return sites a, b, c, ... with these coordinates, of one shape unless "shape" is given."""
    return [
        Site("abc"[number], place.get("shape", (4, 6)), {key: at for key, at in place.items() if key != "shape"})
        for number, place in enumerate(places)
    ]


@pytest.mark.parametrize(
    ("sites", "names"),
    [
        (sites_at({"kind": "a", "task": "b.c"}, {"kind": "a.b", "task": "c"}), ["a.task_b.c", "a.b.task_c"]),
        (sites_at({"kind": "k", "expert": 1}, {"kind": "k", "task": 1}), ["k.expert_1", "k.task_1"]),
        (sites_at({"kind": "k"}, {"kind": "k", "task": 0}), ["k", "k.task_0"]),
        (
            sites_at({"kind": "k", "task": 1}, {"kind": "k", "task": "1", "shape": (8, 6)}),
            ["k.task_1.4x6", "k.task_1.8x6"],
        ),
    ],
    ids=["dots in coordinates", "another name", "one more", "a number and a text"],
)
def test_sites_with_different_fixed_coordinates_are_in_different_groups(sites, names):
    adapter = own("layer").bind(sites, rank=2)
    assert [group.name for group in adapter.groups] == names
    assert [group.sites for group in adapter.groups] == [(site,) for site in sites]
    assert len(init(adapter)) == 3 * len(sites)


@pytest.mark.parametrize(
    ("over", "sites", "name"),
    [
        ("layer", sites_at({"kind": "a"}, {"kind": "a", "shape": (8, 6)}, {"kind": "a.4x6"}), "a.4x6"),
        ("layer", sites_at({"kind": "k", "task": 1}, {"kind": "k", "task": "1"}), "k.task_1.4x6"),
        ("layer", sites_at({"kind": "k", "x": "y_1"}, {"kind": "k", "x_y": 1}), "k.x_y_1.4x6"),
        ("layer", sites_at({"kind": "k.expert_1"}, {"kind": "k", "expert": 1}), "k.expert_1.4x6"),
        ("", sites_at({"layer": 1, "kind": "k"}, {"layer": "1", "kind": "k"}), "1.k.4x6"),
        ("", sites_at({"layer": "1.k", "kind": "q"}, {"layer": 1, "kind": "k.q"}), "1.k.q.4x6"),
    ],
    ids=["a shape in a coordinate", "types", "names", "a coordinate in a kind", "layers of two types", "dots"],
)
def test_two_groups_with_the_same_name_are_rejected(over, sites, name):
    message = rf"a name of its own, got '{name}', which is also that of a.\nGive one of them another coordinate.$"
    with pytest.raises(SiteError, match=message):
        own(over).bind(sites, rank=2)


def test_a_number_and_a_string_are_different_coordinates():
    sites = sites_at({"layer": 1, "kind": "k"}, {"layer": "1", "kind": "k"}, {"layer": 0, "kind": "k"})
    (group,) = own("layer").bind(sites, rank=2).groups
    assert len(set(group.values["layer"])) == 3
    assert sorted(group.index(site)["layer"] for site in sites) == [0, 1, 2]
    assert group.index(sites[2])["layer"] < group.index(sites[0])["layer"]  # numbers are still sorted
    assert [group.values["layer"][group.index(site)["layer"]] for site in sites] == [1, "1", 0]


def test_two_sites_with_the_same_coordinates_are_rejected():
    sites = [Site("a", (4, 6), {"kind": "q"}), Site("b", (4, 6), {"kind": "q"})]
    message = r"b: expected different coordinates along \(layer\) for two sites of one network, got \(0,\) for this"
    with pytest.raises(SiteError, match=message):
        own("layer").bind(sites, rank=2)
    with pytest.raises(SiteError, match=r"b: expected different coordinates along .* for two sites of one network"):
        families.lora().bind(sites, rank=2)
    assert len(own("site").bind(sites, rank=2).groups) == 1


def test_a_repeated_site_is_rejected():
    one, two, again = Site("a", (4, 6)), Site("b", (4, 6)), Site("a", (4, 6), {"layer": 1})
    with pytest.raises(SiteError, match=r"^a: expected each site once, got this one 2 times.\nPass it once.$"):
        own("site").bind([two, one, again], rank=2)
    with pytest.raises(SiteError, match=r"^a: expected each site once, got this one 3 times.\nPass it once.$"):
        own("site").bind([two, one, again, one, two], rank=2)


def test_an_empty_list_of_sites_is_rejected():
    with pytest.raises(SiteError, match="own: expected at least one site, got none"):
        own("site").bind([], rank=2)


def test_a_missing_coordinate_is_rejected():
    message = (
        r"layers.0.q: expected the coordinate 'expert', since the spec stacks weights over it, got only layer, kind\."
    )
    with pytest.raises(SiteError, match=message):
        own("expert").bind(MIXED, rank=2)


def test_find_takes_a_path_or_a_site():
    adapter = own("layer").bind(MIXED, rank=2)
    group, site = adapter.find("layers.1.up")
    assert (group.name, site) == ("up", MIXED[5])
    assert adapter.find(MIXED[5]) == (group, site)
    with pytest.raises(
        SiteError, match=r"own: expected a site of this adapter, got 'layers.9.up'.\nIts 6 sites begin with layers.0.q"
    ):
        adapter.find("layers.9.up")


def test_the_message_for_an_unknown_path_lists_five_sites():
    with pytest.raises(SiteError, match=r"begin with layers.0.q, layers.0.k, layers.0.up, layers.1.q, layers.1.k.$"):
        own("").bind(MIXED, rank=2).find("layers.9.up")


def test_the_message_for_a_size_that_does_not_fit_names_the_first_site():
    sites = [Site("a", (4, 6)), Site("b", (4, 6))]
    with pytest.raises(SiteError, match=r"^a: expected sizes of \(in\) whose product is 6"):
        own("site").bind(sites, rank=2, sizes={"in": 5})


def test_all_groups_share_a_frozen_factor_without_site_modes():
    adapter = families.vera().bind(MIXED, rank=2)
    assert {name: slot.shape for name, slot in adapter.slots.items() if "." not in name} == {"A": (2, 6), "B": (8, 2)}
    assert adapter.slots["0.q.b"].shape == (4,)
    assert adapter.slots["B"].factor.init == families.vera().factors["B"].init


@pytest.mark.parametrize(
    ("spec", "kinds", "line"),
    [
        (families.lotr(), {"q": (8, 8), "v": (4, 8)}, "not shared across weight shapes: A, B (an array for each of 2"),
        (families.lotr(), {"q": (8, 8), "v": (8, 8)}, ""),
        (families.lora(), {"q": (8, 8), "v": (4, 8)}, ""),
        (families.lotr(over="layer"), {"q": (8, 8), "v": (4, 8)}, ""),
        (families.metatt(), {"q": (8, 8), "v": (4, 8), "o": (8, 4)}, "(an array for each of 3 shapes)"),
        (families.vera(), {"q": (8, 8), "v": (4, 8)}, ""),
    ],
    ids=["shapes differ", "one shape", "nothing shared", "kinds are apart anyway", "three shapes", "frozen alone"],
)
def test_factors_that_different_shapes_cannot_share_are_reported(spec, kinds, line):
    adapter = spec.bind(grid(layers=2, kinds=kinds), rank=2)
    assert line in adapter.sharing
    assert bool(adapter.sharing) == bool(line)
    assert str(adapter).endswith(adapter.sharing)


def test_groups_of_equal_sizes_share_one_network():
    sites = grid(layers=3, kinds={"q": (4, 4), "v": (4, 4), "up": (8, 4)})
    networks = families.lora().bind(sites, rank=2).networks
    assert len(networks) == 9
    assert len({id(network) for network in networks}) == 2


def ranks_of(adapter, bond="r"):
    return {site.path: adapter.find(site)[0].network.sizes[bond] for site in adapter.sites}


def test_some_modules_have_a_rank_of_their_own():
    adapter = families.lora().bind(MIXED, rank={"r": 2, "q": 3, "layers.1.k": 1})
    assert ranks_of(adapter) == {
        site.path: 3 if site.path.endswith(".q") else 1 if site.path == "layers.1.k" else 2 for site in MIXED
    }
    assert ranks_of(families.lora().bind(MIXED, rank={"q": 3, "k": 1, "up": 2}))["layers.0.up"] == 2


def test_the_first_name_that_matches_counts():
    adapter = families.lora().bind(MIXED, rank={"r": 2, "layers.0.q": 1, "q": 3})
    assert (ranks_of(adapter)["layers.0.q"], ranks_of(adapter)["layers.1.q"]) == (1, 3)


@pytest.mark.parametrize(
    ("spec", "rank", "message"),
    [
        (families.lora(), {"q": 3}, r"^lora: expected a size for every bond, got none for r\."),
        (families.lora(), {"r": 2, "key": 3}, r"^rank: expected bonds of lora or names of adapted modules, got 'key'"),
        (
            families.lotr(),
            {"p": 2, "q": 2, "k": 3},
            r"^layers\.0\.[qk]: expected the rank of .*, since both are in one network",
        ),
    ],
)
def test_a_rank_of_modules_that_does_not_fit_is_refused(spec, rank, message):
    with pytest.raises(SiteError, match=message):
        spec.bind(MIXED, rank=rank)


def gate(*, trained=False):
    """Return a spec with a controlled Z on two modes of the out axis, which all groups share."""
    middle = trainable if trained else frozen
    factors = {
        "A": trainable("o1 o2 r", init=zeros()),
        "Z": middle("o1 o2", init=controlled_z(), **({"shared": True} if trained else {})),
        "B": trainable("r in"),
    }
    return AdapterSpec(name="gate", weight="(o1 o2) in", factors=factors)


@pytest.mark.parametrize("trained", [False, True])
def test_a_gate_that_weights_of_several_shapes_would_share_is_refused(trained):
    """The leading part of a larger gate has no -1."""
    sites = grid(layers=1, kinds={"q": (6, 4), "up": (8, 4)})
    with pytest.raises(
        SiteError,
        match=r"factor 'Z': expected the same sizes .* got \(2, 3\) at layers\.0\.q and \(2, 4\) at layers\.0\.up\.\n",
    ):
        gate(trained=trained).bind(sites, rank=2)
    with pytest.raises(SiteError, match="Adapt weights of one shape, or give 'o1' and 'o2' sizes in the spec"):
        gate(trained=trained).bind(sites, rank=2)
    same_sizes = grid(layers=1, kinds={"q": (6, 4), "v": (6, 5)})
    adapter = gate(trained=trained).bind(same_sizes, rank=2)
    assert adapter.slots["Z"].shape == (2, 3)
    assert init(adapter)["Z"].tolist() == [[1, 1, 1], [1, 1, -1]]


PAIR = grid(layers=2, kinds={"q": (4, 6), "k": (4, 6)})


def test_a_group_has_a_rank_of_its_own():
    adapter = families.lora().bind(PAIR, rank=2, sizes={"1.k.r": 3})
    assert {group.name: group.network.sizes["r"] for group in adapter.groups} == {
        "0.q": 2,
        "0.k": 2,
        "1.q": 2,
        "1.k": 3,
    }
    assert adapter.slots["1.k.A"].shape == (3, 6)
    assert len({id(network) for network in adapter.networks}) == 2
    assert str(adapter).splitlines()[2:] == [
        "  0.q .. 1.q (3)  3      4 x 6   4        out=4 in=6 r=2",
        "  1.k             1      4 x 6   2.66667  out=4 in=6 r=3",
    ]


def test_the_rank_of_a_group_comes_before_all_others():
    adapter = families.lora().bind(PAIR, rank={"r": 2, "k": 4}, sizes={"r": 1, "1.k.r": 3})
    assert [group.network.sizes["r"] for group in adapter.groups] == [1, 1, 1, 3]


def test_a_single_group_may_be_named():
    (group,) = own("layer kind").bind(PAIR, rank=2).groups
    adapter = own("layer kind").bind(PAIR, rank=2, sizes={f"{group.name}.p": 3})
    assert adapter.networks[0].sizes["p"] == 3


@pytest.mark.parametrize(
    ("spec", "sizes", "match"),
    [
        (
            families.lora(),
            {"2.q.r": 3},
            r"sizes: expected a group of lora and a bond of its own, got '2.q.r'.\nThe near",
        ),
        (families.lora(), {"0.q.s": 3}, r"got '0.q.s'.\nThe bonds with a size of their own are r."),
        (families.lora(), {"0.q.in": 3}, r"got '0.q.in'.\nThe bonds with a size of their own are r."),
        (families.vera(), {"0.q.r": 3}, r"but the factor 'A', which all groups share, carries 'r'"),
        (families.mtlora(variant="icfm"), {"0.q.q": 3}, r"'0.q.q', but 'q' has the size of 'p'.\nGive that a size."),
        (families.svdiff(), {"0.q.k": 3}, r"got '0.q.k'.\nThe bonds with a size of their own are"),
        (families.lora(), {"0.q.r": 0}, r"size of '0.q.r': expected an integer of at least 1, got 0"),
    ],
)
def test_a_size_that_a_group_cannot_have_by_itself(spec, sizes, match):
    with pytest.raises(SiteError, match=match):
        spec.bind(PAIR, rank=2 if spec.free_bonds else None, sizes=sizes)


PLACE = grid(layers=1, kinds={"q": (8, 8), "k": (8, 8)})


@pytest.mark.parametrize("rank", [8, 99, {"q": 4}])
def test_a_rank_that_no_bond_takes_is_refused(rank):
    """It would be ignored; oft has one bond, whose size is that of a block."""
    for spec in (families.oft(), families.c3a(), families.krona()):
        sizes = {"i": 2} if spec.name == "oft" else {}
        assert spec.bind(PLACE, sizes=sizes)
        with pytest.raises(
            SiteError, match=rf"^rank: expected no rank, since no bond of {spec.name} takes .* got .*\nLeave"
        ):
            spec.bind(PLACE, rank=rank, sizes=sizes)


def test_a_rank_for_modules_that_earlier_names_take_is_refused():
    two = grid(layers=2, kinds={"q": (8, 8), "k": (8, 8)})
    bound = families.lora().bind(two, rank={"r": 1, "layers.0.q": 2, "q": 3})
    assert [network.sizes["r"] for network in bound.networks] == [2, 1, 3, 1]
    with pytest.raises(SiteError, match=r"^rank: expected a name that is the first .* got 'layers\.0\.q', whose"):
        families.lora().bind(two, rank={"r": 1, "q": 3, "layers.0.q": 2})
