"""Groups: which sites share a network, under which name, and where each stands in it."""

import itertools

import pytest

from tnadapt import AdapterSpec, Site, SiteError, families, grid, init, raw, trainable, zeros

MIXED = grid(layers=2, kinds={"q": (4, 6), "k": (4, 6), "up": (8, 6)})
EXPERTS = tuple(
    Site(f"h.{layer}.experts.{expert}.{kind}", (4, 6), {"layer": layer, "kind": kind, "expert": expert})
    for layer, expert, kind in itertools.product((0, 1), (0, 1, 2), ("up", "down"))
)


def own(over):
    """A spec with one core for each place along `over`."""
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
def test_a_coordinate_more_parts_the_groups(over, number, sites_each):
    found = groups(over, EXPERTS)
    assert len(found) == number
    assert {len(paths) for paths in found.values()} == {sites_each}


def test_the_name_of_a_group_says_its_fixed_coordinates():
    kinds = [f"{kind}.expert_{expert}" for expert in range(3) for kind in ("up", "down")]
    assert [*groups("layer", EXPERTS)] == kinds
    assert [*groups("layer kind", EXPERTS)] == ["expert_0", "expert_1", "expert_2"]
    assert [*groups("expert", EXPERTS)] == ["0.up", "0.down", "1.up", "1.down"]
    assert [*groups("", EXPERTS)][:2] == ["0.up.expert_0", "0.down.expert_0"]
    coordinates = {"task": "sst-2", "kind": "up", "expert": 5, "layer": 3}  # in whatever order they were given
    assert [*groups("", [Site("x", (4, 6), coordinates)])] == ["3.up.expert_5.task_sst-2"]
    assert [*groups("task layer", [Site("x", (4, 6), coordinates)])] == ["up.expert_5"]


def test_a_shape_is_told_where_the_label_is_not_unique():
    sites = [Site("x", (4, 6), {"kind": "q"}), Site("y", (8, 6), {"kind": "q"}), Site("z", (8, 6), {"kind": "k"})]
    assert groups("layer", sites) == {"q.4x6": ["x"], "q.8x6": ["y"], "k": ["z"]}


def test_an_adapter_with_one_group_has_short_names():
    assert set(init(own("site").bind(EXPERTS, rank=2))) == {"A", "G", "B"}
    names = set(init(own("layer").bind(MIXED, rank=2)))
    assert names == {f"{kind}.{factor}" for kind in ("q", "k", "up") for factor in "AGB"}


def test_gaps_are_numbered_away_in_rising_order():
    sites = [Site(f"h.{layer}", (4, 6), {"layer": layer, "kind": "q"}) for layer in (11, 3, 7)]
    adapter = own("layer").bind(sites, rank=2)
    (group,) = adapter.groups
    assert dict(group.values) == {"layer": (3, 7, 11)}
    assert [group.index(site)["layer"] for site in sites] == [2, 0, 1]
    assert group.network.sizes["layer"] == 3


def test_numbers_rise_as_numbers_and_names_keep_their_order():
    sites = [
        Site(f"h.{layer}.{kind}", (4, 6), {"layer": layer, "kind": kind}) for layer in (10, 9) for kind in ("v", "k")
    ]
    (group,) = own("layer kind").bind(sites, rank=2).groups
    assert dict(group.values) == {"layer": (9, 10), "kind": ("v", "k")}
    assert group.index(sites[1]) == {"layer": 1, "kind": 1}


def test_a_site_mode_is_the_running_number():
    (group,) = own("site").bind(EXPERTS, rank=2).groups
    assert [group.index(site)["site"] for site in EXPERTS] == list(range(12))


def test_a_place_may_stay_empty():
    sites = [site for site in grid(layers=2, kinds={"q": (4, 6), "k": (4, 6)}) if site.path != "layers.1.q"]
    (group,) = own("layer kind").bind(sites, rank=2).groups
    assert (group.network.sizes["layer"], group.network.sizes["kind"], len(group.sites)) == (2, 2, 3)


def sites_at(*places):
    """Sites a, b, c, ... of one shape, or of the shape that a place names."""
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
def test_sites_of_other_coordinates_are_in_other_groups(sites, names):
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
def test_two_groups_of_one_name_are_refused(over, sites, name):
    message = rf"its group would be named '{name}'.\nHowever, so is that of a.\nGive one of them another coordinate.$"
    with pytest.raises(SiteError, match=message):
        own(over).bind(sites, rank=2)


def test_coordinates_of_two_types_are_two_places():
    sites = sites_at({"layer": 1, "kind": "k"}, {"layer": "1", "kind": "k"}, {"layer": 0, "kind": "k"})
    (group,) = own("layer").bind(sites, rank=2).groups
    assert len(set(group.values["layer"])) == 3
    assert sorted(group.index(site)["layer"] for site in sites) == [0, 1, 2]
    assert group.index(sites[2])["layer"] < group.index(sites[0])["layer"]  # numbers still rise
    assert [group.values["layer"][group.index(site)["layer"]] for site in sites] == [1, "1", 0]


def test_two_sites_at_one_place_are_refused():
    sites = [Site("a", (4, 6), {"kind": "q"}), Site("b", (4, 6), {"kind": "q"})]
    message = (
        r"b: two sites of one network need different coordinates along \(layer\).\nHowever, a stands at the same place"
    )
    with pytest.raises(SiteError, match=message):
        own("layer").bind(sites, rank=2)
    with pytest.raises(SiteError, match="b: two sites of one network need different coordinates"):
        families.lora().bind(sites, rank=2)
    assert len(own("site").bind(sites, rank=2).groups) == 1


def test_a_site_given_twice_is_refused():
    one, two, again = Site("a", (4, 6)), Site("b", (4, 6)), Site("a", (4, 6), {"layer": 1})
    with pytest.raises(SiteError, match=r"^a: this site was given 2 times.\nGive it once.$"):
        own("site").bind([two, one, again], rank=2)
    with pytest.raises(SiteError, match=r"^a: this site was given 3 times.\nGive it once.$"):
        own("site").bind([two, one, again, one, two], rank=2)


def test_no_sites_are_refused():
    with pytest.raises(SiteError, match="own: an adapter needs at least one site"):
        own("site").bind([], rank=2)


def test_a_missing_coordinate_is_refused():
    message = (
        r"layers.0.q: expected the coordinate 'expert', since the spec stacks weights over it, got only layer, kind\."
    )
    with pytest.raises(SiteError, match=message):
        own("expert").bind(MIXED, rank=2)


def test_a_site_is_found_by_path_or_by_itself():
    adapter = own("layer").bind(MIXED, rank=2)
    group, site = adapter.find("layers.1.up")
    assert (group.name, site) == ("up", MIXED[5])
    assert adapter.find(MIXED[5]) == (group, site)
    with pytest.raises(SiteError, match=r"layers.9.up: not a site of this adapter.\nIts 6 sites begin with layers.0.q"):
        adapter.find("layers.9.up")


def test_the_first_five_sites_are_told_where_one_is_not_found():
    with pytest.raises(SiteError, match=r"begin with layers.0.q, layers.0.k, layers.0.up, layers.1.q, layers.1.k.$"):
        own("").bind(MIXED, rank=2).find("layers.9.up")


def test_a_size_that_does_not_fit_is_told_of_the_first_site():
    sites = [Site("a", (4, 6)), Site("b", (4, 6))]
    with pytest.raises(SiteError, match=r"^a: the sizes of \(in\) must multiply to 6"):
        own("site").bind(sites, rank=2, sizes={"in": 5})


def test_a_frozen_factor_without_site_mode_is_one_for_all_groups():
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
def test_what_shapes_keep_from_being_shared_is_told(spec, kinds, line):
    adapter = spec.bind(grid(layers=2, kinds=kinds), rank=2)
    assert line in adapter.sharing
    assert bool(adapter.sharing) == bool(line)
    assert str(adapter).endswith(adapter.sharing)
