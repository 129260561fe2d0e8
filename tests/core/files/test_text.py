"""Specs and adapters as JSON text: the round trip, and the texts that are refused."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.files.forged import older
from tests.table import FAMILIES, REPRESENTATIVES
from tnadapt import (
    AdapterSpec,
    FormatError,
    Site,
    families,
    from_json,
    frozen,
    grid,
    normal,
    raw,
    same,
    to_json,
    trainable,
    unit,
    zeros,
)
from tnadapt.sizes import at_most, like
from tnadapt.testing import adapters, specs

SITES = grid(layers=2, kinds={"self_attn.q": (4, 6), "up": (8, 6)})


def table(**changes):
    words = {
        "name": "own",
        "weight": "out in",
        "factors": {"A": trainable("r in"), "B": trainable("out r", init=zeros())},
    }
    return AdapterSpec(**(words | {"scale": raw()} | changes))


SPECS = {
    "lora": families.lora(alpha=16),
    "lora gaussian": families.lora(gaussian=True, rank_stabilized=True),
    "lotr": families.lotr(),
    "lorta": families.lorta(over="layer"),
    "tlora": families.tlora(),
    "vera": families.vera(),
    "tera": families.tera(out_order=1, in_order=4),
    "centered": table(start="centered", factors={"A": trainable("r in"), "B": trainable("out r"), "s": trainable("")}),
    "own start": table(start="free", factors={"W": trainable("in out", init=normal(1e-30))}),
    "a rule of each kind": table(
        weight="(o1 o2) in",
        over="layer",
        factors={"A": trainable("r s t u in"), "B": trainable("o1 o2 r s t u layer", init=zeros())},
        sizes={"r": like("layer"), "s": at_most("in"), "t": 3, "o1": 2},
    ),
    "copies": table(
        factors={
            "A": trainable("r in"),
            "B": trainable("out q", init=zeros()),
            "C": trainable("p q"),
            "Ct": same("C", "p r"),
            "C0": same("C", at_start=True),
        },
    ),
    "a scalar again": table(factors={"W": trainable("out in", init=zeros()), "s": trainable(""), "t": same("s", "")}),
    "terms": table(
        factors={
            "A": trainable("r in"),
            "B": trainable("out r"),
            "A0": same("A", at_start=True),
            "B0": same("B", at_start=True),
            "G": frozen("r"),
        },
        terms=["G B A", "- B0 G A0"],
    ),
    "one term": table(terms=["+ B  A"]),
    "shared": table(over="layer", factors={"A": trainable("r in", shared=True), "B": trainable("out r", init=zeros())}),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_spec_survives_the_round_trip(spec):
    again = from_json(to_json(spec))
    assert again == spec
    assert str(again) == str(spec)
    assert list(again.factors) == list(spec.factors)
    assert to_json(again) == to_json(spec)
    assert "\n" not in to_json(spec)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_survives_the_round_trip(name):
    spec = FAMILIES[name].spec
    again = from_json(to_json(spec))
    assert (again, to_json(again)) == (spec, to_json(spec))


@given(spec=st.sampled_from(["zero", "centered", "free"]).flatmap(lambda start: specs(start=start)))
def test_any_spec_survives_the_round_trip(spec):
    again = from_json(to_json(spec))
    assert (again, str(again), to_json(again)) == (spec, str(spec), to_json(spec))


@given(adapter=adapters())
def test_any_adapter_survives_the_round_trip(adapter):
    again = from_json(to_json(adapter))
    assert (again, again.slots, again.starts, to_json(again)) == (
        adapter,
        adapter.slots,
        adapter.starts,
        to_json(adapter),
    )


@pytest.mark.parametrize("adapter", REPRESENTATIVES, indirect=True)
def test_an_adapter_survives_the_round_trip_with_equal_slots(adapter):
    again = from_json(to_json(adapter))
    assert again.slots == adapter.slots


@pytest.mark.parametrize(
    "site",
    [
        Site("classifier", (4, 6)),
        Site("h.3.attn", (4, 6), {"layer": 3, "kind": "attn"}),
        Site("h.3.mlp.3", (4, 6), {"layer": 3, "kind": "mlp.3"}),
        Site("h.13.attn", (4, 6), {"layer": 3}),
        Site("0.weight", (4, 6), {"layer": 0}),
        Site("h.3.experts.5.up", (4, 6), {"layer": 3, "kind": "experts.up", "expert": 5}),
        Site("h.first.attn", (4, 6), {"layer": "first", "task": "sst-2"}),
        Site("h.3.attn", (4, 6), {"layer": "3"}),
        Site("h.3.*", (4, 6), {"layer": 3}),
        Site("h.*.attn", (4, 6), {"layer": 3}),
        Site("h.*.3", (4, 6), {"layer": 3}),
        Site("h.\u00e9\u4e2d.3", (4, 6), {"layer": 3}),
        Site("", (4, 6)),
        Site("h.-1", (4, 6), {"layer": -1}),
    ],
    ids=str,
)
def test_a_site_survives_the_round_trip(site):
    (again,) = from_json(to_json(families.lora().bind([site], rank=1))).sites
    assert again == site
    assert [type(value) for value in again.coordinates.values()] == [type(value) for value in site.coordinates.values()]


@pytest.mark.parametrize(
    "words",
    [
        {"rank": 2},
        {"rank": {"p": 2, "q": 3}, "seed": 2**70, "alpha": 0.1},
        {"rank": {"p": 2}, "sizes": {"q": 3, "in": 6}},
        {"sizes": {"p": 2, "q": 3}, "alpha": 7},
    ],
)
def test_the_arguments_of_bind_survive_the_round_trip(words):
    adapter = families.lotr().bind(SITES, **words)
    assert from_json(to_json(adapter)) == adapter


@pytest.mark.parametrize(
    ("path", "coordinates", "written", "told"),
    [
        ("h.3.attn.q", {"layer": 3, "kind": "attn.q"}, ["h.", ".attn.q"], {}),
        ("h.3.attn.q", {"layer": 3, "kind": "q"}, ["h.", ".attn.q"], {"kind": "q"}),
        ("h.3.q", {"layer": 3}, ["h.", ".q"], {"kind": "h.3.q"}),
        ("h.3.q", {"layer": 3, "kind": "q", "expert": 5}, ["h.", ".q"], {"expert": 5}),
        ("h.3.q", {"layer": "3", "kind": "q"}, ["h.", ".q"], {}),
        ("h.3", {"layer": 3, "kind": ""}, ["h.", ""], {}),
        ("3.q", {"layer": 3, "kind": "q"}, ["", ".q"], {}),
        ("h.3.3", {"layer": 3, "kind": "h.3.3"}, ["h.3.3"], {}),
        ("h.31.q", {"layer": 3, "kind": "q"}, ["h.31.q"], {"kind": "q"}),
        ("score", {}, ["score"], {}),
        ("h.*.q", {}, ["h.*.q"], {}),
        ("h.*.3", {"layer": 3, "kind": "*"}, ["h.*.", ""], {"kind": "*"}),
    ],
)
def test_a_pattern_stores_only_what_the_path_does_not_say(path, coordinates, written, told):
    adapter = families.lora().bind([Site(path, (4, 6), coordinates)], rank=1)
    data = json.loads(to_json(adapter))
    assert data["patterns"] == [{"path": written, "shape": [4, 6], "coordinates": told}]
    assert data["sites"] == [[0, coordinates.get("layer", 0)]]
    assert from_json(to_json(adapter)) == adapter


def test_layers_share_patterns():
    data = json.loads(to_json(families.lora().bind(SITES, rank=1)))
    assert data["patterns"] == [
        {"path": ["layers.", ".self_attn.q"], "shape": [4, 6], "coordinates": {}},
        {"path": ["layers.", ".up"], "shape": [8, 6], "coordinates": {}},
    ]
    assert data["sites"] == [[0, 0], [1, 0], [0, 1], [1, 1]]


LAYERS = st.integers(-1, 3) | st.sampled_from(["", "1", "*", "first", "a.b", "."])
WORDS = st.sampled_from(["", "0", "1", "2", "-1", "h", "*", "a b", "first", "\u00e9"])
KINDS = st.sampled_from(["", "h", ".h", "h.1", "*"])
NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=2)


@given(data=st.data(), words=st.lists(WORDS, min_size=1, max_size=4))
def test_any_site_survives_the_round_trip(data, words):
    path = ".".join(words)
    kinds = KINDS | st.just(path) | st.sampled_from([".".join(words[number:]) for number in range(len(words))])
    coordinates = data.draw(st.fixed_dictionaries({}, optional={"layer": LAYERS, "kind": kinds}))
    coordinates |= data.draw(st.dictionaries(NAMES, LAYERS, max_size=2))
    site = Site(path, (4, 6), coordinates)
    adapter = families.lora().bind([site], rank=1)
    (again,) = from_json(to_json(adapter)).sites
    assert again == site
    assert {key: type(at) for key, at in again.coordinates.items()} == {
        key: type(at) for key, at in site.coordinates.items()
    }
    assert to_json(from_json(to_json(adapter))) == to_json(adapter)


GONE = type("Gone", (), {"__repr__": lambda self: "gone"})()
ONES = {"kind": "constant", "amount": 1, "fan": ""}


def edited(text, place, value):
    """Return the text with one value replaced, added or removed; `place` is a path such as "spec.scale.alpha"."""
    data = json.loads(text)
    *way, last = place.split(".")
    owner = data
    for word in way:
        owner = owner[int(word) if isinstance(owner, list) else word]
    if value is GONE:
        del owner[last]
    elif isinstance(owner, list):
        owner[int(last)] = value
    else:
        owner[last] = value
    return json.dumps(data)


INVALID = "expected a valid spec, got an invalid one(.|\n)*"
NOT_JSON = "the text: expected JSON, got text that cannot be parsed"
READS = "the text: expected format 1 or 2, which this release reads, got format "
EDITS = [  # of the text of a spec in either format
    ("format", 0, READS + "0."),
    ("format", -1, READS + "-1."),
    ("format", 3, READS + "3"),
    ("format", "1", READS + "'1'"),
    ("format", "2", READS + "'2'"),
    ("format", 2.0, READS + "2.0"),
    ("format", True, READS + "True"),
    ("format", [1], READS + ".1."),
    ("format", GONE, READS + "None"),
    ("spec", GONE, "adapter: expected the keys .*, got none"),
    ("spec", [], "spec: expected a value of type .+, got list"),
    ("extra", 1, "adapter: expected no unknown keys, got .'extra'."),
    ("spec.extra", 1, "spec: expected no unknown keys, got .'extra'..\nWas it saved by a newer release?"),
    ("spec.weight", GONE, "spec: expected the keys .'weight'."),
    ("spec.name", 3, "spec.name: expected a value of type .+, got int"),
    ("spec.over", None, "spec.over: expected a value of type .+, got NoneType"),
    ("spec.factors", [], "spec.factors: expected a value of type .+, got list"),
    ("spec.scale", "raw", "spec.scale: expected a value of type .+, got str"),
    ("spec.scale.alpha", "1", "scale.alpha: expected a value of type .+, got str"),
    ("spec.scale.alpha", True, "scale.alpha: expected a value of type .+, got bool"),
    ("spec.scale.alpha", float("nan"), INVALID + "scale: expected a finite number as alpha"),
    ("spec.scale.alpha", float("inf"), INVALID + "scale: expected a finite number as alpha"),
    ("spec.scale.alpha", 10**400, INVALID + "scale: expected a finite number as alpha"),
    ("spec.scale.alpha", 2e30, INVALID + "scale: expected a finite number as alpha"),
    ("spec.scale.rule", "twice", INVALID + "scale: expected one of .* got 'twice'"),
    ("spec.scale.extra", 1, "scale: expected no unknown keys, got .*extra"),
    ("spec.factors.A", "r in", "factor A: expected a value of type .+, got str"),
    ("spec.factors.A.extra", 1, "factor A: expected no unknown keys, got .*extra"),
    ("spec.factors.A.modes", ["r", "in"], "factor A.modes: expected a value of type .+, got list"),
    ("spec.factors.A.trainable", 1, "factor A.trainable: expected a value of type .+, got int"),
    ("spec.factors.A.trainable", "yes", "factor A.trainable: expected a value of type .+, got str"),
    ("spec.factors.A.init", "zeros", "factor A.init: expected a value of type .+, got str"),
    ("spec.factors.A.init.amount", None, "factor A: init.amount: expected a value of type .+, got NoneType"),
    ("spec.factors.A.init.amount", 10**400, INVALID + "expected a bound of 0 or of 1e-30 to 1e.30"),
    ("spec.factors.A.init.amount", 2e30, INVALID + "expected a bound of 0 or of 1e-30 to 1e.30"),
    ("spec.factors.A.init.amount", 5e-324, INVALID + "expected a bound of 0 or of 1e-30 to 1e.30"),
    ("spec.factors.A.init.amount", float("nan"), INVALID + "expected a bound of 0 or of"),
    ("spec.factors.A.init.amount", True, "factor A: init.amount: expected a value of type .+, got bool"),
    ("spec.factors.A.init.fan", "z", INVALID + "unknown mode 'z'"),
    ("spec.factors.A.init.mean", 0, "factor A: init: expected no unknown keys, got .'mean'."),
    ("spec.factors.A", GONE, INVALID + "weight mode 'in': no factor has it"),
    ("spec.weight", "((out in", INVALID + "bracket inside a bracket"),
    ("spec.weight", "(" * 10**4, INVALID + "bracket inside a bracket"),
    ("spec.weight", "(" * 10**6, "weight: expected at most 65,536 characters, got 1,000,000"),
]
SAME = "spec.factors.C"
EDITS_OF_2 = [
    ("format", 1, "spec: expected no unknown keys, got .'sizes', 'start'."),
    ("spec.sizes", GONE, "spec: expected the keys .'sizes'."),
    ("spec.sizes", [], "spec.sizes: expected a value of type .+, got list"),
    ("spec.sizes", {"r": {"at_most": 3}}, "sizes.r: expected a size or a rule for one, got {'at_most': 3}"),
    ("spec.sizes", {"r": {"at_most": "in", "like": "in"}}, "sizes.r: expected a size or a rule for one, got"),
    ("spec.sizes", {"r": {}}, "sizes.r: expected a size or a rule for one, got {}"),
    ("spec.sizes", {"r": "like"}, "sizes.r: expected a size or a rule for one, got 'like'"),
    ("spec.sizes", {"r": True}, "sizes.r: expected a size or a rule for one, got True"),
    ("spec.sizes", {"r": 2.0}, "sizes.r: expected a size or a rule for one, got 2.0"),
    ("spec.sizes", {"r": 0}, INVALID + "sizes: expected a size of at least 1 for 'r', got 0"),
    ("spec.sizes", {"r": {"at_most": "z"}}, INVALID + "sizes: expected a bond that is at most a mode of the weight"),
    ("spec.start", GONE, "spec: expected the keys .'start'."),
    ("spec.start", True, "spec.start: expected a value of type .+, got bool"),
    ("spec.start", "yes", INVALID + "start: expected one of 'zero', 'centered', 'free', got 'yes'"),
    ("spec.terms", "A B", "spec.terms: expected a value of type .+, got str"),
    ("spec.terms", [3], "terms.0.: expected a value of type str, got int"),
    ("spec.terms", ["A B", None], "terms.1.: expected a value of type str, got NoneType"),
    ("spec.terms", ["A C"], INVALID + "term 'A C': 'C' is no factor"),
    ("spec.factors.A.shared", 1, "factor A.shared: expected a value of type bool, got int"),
    ("spec.factors.A.init.kind", "os.system", INVALID + "expected one of constant.*got 'os"),
    ("spec.factors.A.init.law", "normal", "factor A: init: expected no unknown keys, got .'law'."),
    (SAME, {"same": 3}, "factor C.same: expected a value of type str, got int"),
    (SAME, {"same": "A", "init": ONES}, "factor C: expected no unknown keys, got .'init'."),
    (SAME, {"same": "A", "modes": ["r"]}, "factor C.modes: expected a value of type str, got list"),
    (SAME, {"same": "A", "at_start": 1}, "factor C.at_start: expected a value of type bool, got int"),
    (SAME, {"same": "D"}, INVALID + "factor 'C': expected the name of a factor to use again, got 'D'"),
    (SAME, {"same": "C"}, INVALID + "factor 'C': expected the name of a factor to use again, got 'C', which is a copy"),
    (
        "spec.factors._",
        {"modes": "r", "trainable": True, "init": ONES},
        "factor '_': expected a name that does not begin with '_'",
    ),
]
LAW = ONES | {"law": "constant"}
del LAW["kind"]
EDITS_OF_1 = [
    ("format", 2, "spec: expected no unknown keys, got .'caps', 'centered', 'identity_at_start'."),
    ("spec.caps", GONE, "spec: expected the keys .'caps'."),
    ("spec.caps", {"r": 3}, "caps.r: expected a value of type .+, got int"),
    ("spec.caps", {"r": "z"}, INVALID + "sizes: expected a bond that is at most a mode of the weight, got 'r' and 'z'"),
    ("spec.ties", {"r": None}, "ties.r: expected a value of type .+, got NoneType"),
    ("spec.ties", ["r"], "spec.ties: expected a value of type .+, got list"),
    ("spec.ties", {"r": "z"}, INVALID + "sizes: expected a bond like a mode of the weight or the sites"),
    ("spec.given", ["r"], "spec.given: expected a value of type .+, got list"),
    ("spec.given", "r", INVALID + "sizes: expected a mode of the weight as required, got 'r'"),
    ("spec.centered", 0, "spec.centered: expected a value of type .+, got int"),
    ("spec.identity_at_start", "yes", "spec.identity_at_start: expected a value of type .+, got str"),
    ("spec.identity_at_start", GONE, "spec: expected the keys .'identity_at_start'."),
    ("spec.start", "zero", "spec: expected no unknown keys, got .'start'."),
    ("spec.sizes", {}, "spec: expected no unknown keys, got .'sizes'."),
    ("spec.terms", ["A B"], "spec: expected no unknown keys, got .'terms'."),
    ("spec.factors.A.shared", True, "factor A: expected no unknown keys, got .'shared'."),
    ("spec.factors.A.init.law", "os.system", INVALID + "expected one of constant.*got 'os"),
    ("spec.factors.A.init.law", "svd", "factor A: expected an initializer of format 1, got 'svd'"),
    ("spec.factors.A.init.kind", "normal", "factor A: init: expected no unknown keys, got .'kind'."),
    (SAME, {"same": "A"}, "factor C: expected no unknown keys, got .'same'."),
    (
        "spec.factors._",
        {"modes": "r", "trainable": True, "init": LAW},
        "factor '_': expected a name that does not begin with '_'",
    ),
]


def shown(value):
    return str(value)[:30]


@pytest.mark.parametrize(("place", "value", "message"), [*EDITS, *EDITS_OF_2], ids=shown)
def test_an_invalid_text_of_a_spec_is_refused(place, value, message):
    with pytest.raises(FormatError, match=message):
        from_json(edited(to_json(families.lora()), place, value))


@pytest.mark.parametrize(("place", "value", "message"), [*EDITS, *EDITS_OF_1], ids=shown)
def test_an_invalid_text_of_a_spec_in_format_1_is_refused(place, value, message):
    text = json.dumps(older(json.loads(to_json(families.lora()))))
    assert from_json(text) == families.lora()
    with pytest.raises(FormatError, match=message):
        from_json(edited(text, place, value))


ADAPTER_EDITS = [
    ("extra", 1, "adapter: expected no unknown keys, got .*extra"),
    ("seed", GONE, "adapter: expected the keys .'seed'."),
    ("seed", "0", "adapter.seed: expected a value of type .+, got str"),
    ("seed", True, "adapter.seed: expected a value of type .+, got bool"),
    ("seed", -1, "seed: expected an integer of at least 0, got -1"),
    ("seed", 0.5, "adapter.seed: expected a value of type .+, got float"),
    ("rank", "2", "adapter.rank: expected a value of type .+, got str"),
    ("rank", True, "adapter.rank: expected a value of type .+, got bool"),
    ("rank", 0, "rank: expected an integer of at least 1, got 0"),
    ("rank", 2**31, "rank: expected at most 2,147,483,647, got 2,147,483,648"),
    ("rank", {"p": 2, "q": 2**31}, "rank of 'q': expected at most 2,147,483,647"),
    ("rank", {"p": 2}, "expected a size for every bond, got none for q"),
    ("rank", {"p": 2, "q": "2"}, "rank of 'q': expected an integer of at least 1, got '2'"),
    ("sizes", [], "adapter.sizes: expected a value of type .+, got list"),
    ("sizes", {"in": 5}, "whose product is 6, got in=5"),
    ("sizes", {"in": 6.0}, "size of 'in': expected an integer of at least 1, got 6.0"),
    ("sites", [], "expected at least one site, got none"),
    ("sites", {}, "adapter.sites: expected a value of type .+, got dict"),
    ("sites.0", 0, "sites: expected .pattern, layer., got 0"),
    ("sites.0", [9, 0], "sites: expected .pattern, layer., got .9, 0."),
    ("sites.0", [-1, 0], "sites: expected .pattern, layer."),
    ("sites.0", [0, 0, 0], "sites: expected .pattern, layer."),
    ("sites.0", [0, None], "sites: expected .pattern, layer."),
    ("sites.0", [False, 0], "sites: expected .pattern, layer."),
    ("sites.0", [0, True], "expected an integer or a string as coordinate 'layer', got True"),
    ("sites.0", [0, 1], "layers.1.self_attn.q: expected each site once, got this one 2 times"),
    ("patterns", [], "sites: expected .pattern, layer."),
    ("patterns.0", "x", "pattern: expected a value of type .+, got str"),
    ("patterns.0.extra", 1, "pattern: expected no unknown keys, got .*extra"),
    ("patterns.0.path", 1, "pattern.path: expected a value of type .+, got int"),
    ("patterns.0.path", "layers.*.self_attn.q", "pattern.path: expected a value of type .+, got str"),
    ("patterns.0.path", [], "pattern: expected a path of one or two strings and no layer"),
    ("patterns.0.path", ["a", "b", "c"], "pattern: expected a path of one or two strings and no layer"),
    ("patterns.0.path", ["a", 0], "pattern: expected a path of one or two strings and no layer"),
    (
        "patterns.0.path",
        ["one.place.for.all.layers"],
        "one.place.for.all.layers: expected each site once, got this one 2 times",
    ),
    ("patterns.0.shape", 24, "pattern.shape: expected a value of type .+, got int"),
    ("patterns.0.shape", [4, "6"], "an axis of the weight: expected an integer of at least 1, got '6'"),
    ("patterns.0.shape", [4, 6.0], "an axis of the weight: expected an integer of at least 1, got 6.0"),
    ("patterns.0.shape", [4, 0], "an axis of the weight: expected an integer of at least 1, got 0"),
    ("patterns.0.shape", [4, 2**31], "an axis of the weight: expected at most 2,147,483,647"),
    ("patterns.0.shape", [4, True], "an axis of the weight: expected an integer of at least 1, got True"),
    ("patterns.0.shape", [], "expected a weight of at least one axis, got shape"),
    ("patterns.0.shape", [4, 6, 1], "expected a weight of 2 axes for this spec"),
    ("patterns.0.coordinates", {"kind": []}, "expected an integer or a string as coordinate 'kind'"),
    ("patterns.0.coordinates", {"kind": None}, "expected an integer or a string as coordinate 'kind'"),
    ("patterns.0.coordinates", {"kind": True}, "expected an integer or a string as coordinate 'kind', got True"),
    ("patterns.0.coordinates", {"layer": 7}, "pattern: expected a path of one or two strings and no layer"),
    ("patterns.0.coordinates.layer", 0, "pattern: expected a path of one or two strings and no layer"),
]


@pytest.mark.parametrize(("place", "value", "message"), ADAPTER_EDITS, ids=shown)
def test_an_invalid_text_of_an_adapter_is_refused(place, value, message):
    text = to_json(families.lotr().bind(SITES, rank=2))
    for written in (text, json.dumps(older(json.loads(text)))):
        with pytest.raises(FormatError, match=message):
            from_json(edited(written, place, value))


NO_SCALE = r"scales.8x6: expected a number of 1e-30 to 1e\+30 in size"


def with_unit():
    return families.lotr().bind(SITES, rank=2, scale=unit(2))


def test_a_file_holds_the_numbers_of_the_scale_unit_beside_its_rule():
    adapter = with_unit()
    text = to_json(adapter)
    assert json.loads(text)["scales"] == {group.name: group.network.scale for group in adapter.groups}
    assert from_json(text) == adapter
    assert "scales" not in json.loads(to_json(families.lotr().bind(SITES, rank=2)))


def test_the_numbers_of_a_file_win_over_a_formula_that_gives_others():
    adapter, data = with_unit(), json.loads(to_json(with_unit()))
    data["scales"][adapter.groups[0].name] = 0.125
    other = from_json(json.dumps(data))
    assert [group.network.scale for group in other.groups] == [0.125, adapter.groups[1].network.scale]
    assert from_json(to_json(other)) == other != adapter
    assert other.spec == adapter.spec


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("scales", None, "scales: expected a number for each group, since the scale is unit, got none"),
        ("scales", {}, "scales: expected a number for each group"),
        ("scales.other", 1.0, "scales: expected a number for each group"),
        ("scales.8x6", 0, f"{NO_SCALE}, got 0"),
        ("scales.8x6", float("inf"), f"{NO_SCALE}, got inf"),
        ("scales.8x6", float("-inf"), f"{NO_SCALE}, got -inf"),
        ("scales.8x6", float("nan"), f"{NO_SCALE}, got nan"),
        ("scales.8x6", True, f"{NO_SCALE}, got True"),
        ("scales.8x6", "1", f"{NO_SCALE}, got '1'"),
        ("scales.8x6", 1e300, f"{NO_SCALE}, got 1e"),
        ("scales.8x6", 10**400, f"{NO_SCALE}, got 1000"),
        ("scales.8x6", 5e-324, f"{NO_SCALE}, got 5e-324"),
        ("scales.8x6", -1e300, f"{NO_SCALE}, got -1e"),
        ("scales.8x6", -0.5, r"scales.8x6: expected the sign of alpha, which is 2, got -0\.5"),
        ("spec.scale.rule", "raw", "scales: expected none, since its rule is another"),
        ("spec.scale.rule", "other", "scale: expected one of"),
    ],
)
def test_numbers_of_a_scale_that_cannot_be_are_refused(place, value, message):
    data = json.loads(to_json(with_unit()))
    *path, last = place.split(".")
    where = data
    for word in path:
        where = where[word]
    where[last] = value
    if value is None:
        del where[last]
    with pytest.raises(FormatError, match=message):
        from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", NOT_JSON),
        ("lora", NOT_JSON),
        ("{'format': 1}", NOT_JSON),
        ('{"format": 1', NOT_JSON),
        ("[" * 100_000, NOT_JSON),
        ('{"format":' * 100_000, NOT_JSON),
        ('{"format":' + "1" * 5000 + "}", NOT_JSON),
        ("[]", "the text: expected a value of type .+, got list"),
        ("3", "the text: expected a value of type .+, got int"),
        ("null", "the text: expected a value of type .+, got NoneType"),
        ("{}", READS + "None"),
        ('{"format": 1}', "adapter: expected the keys .*, got none"),
        ('{"format": 2}', "adapter: expected the keys .*, got none"),
    ],
    ids=lambda value: value[:20],
)
def test_a_text_that_to_json_did_not_write_is_refused(text, message):
    with pytest.raises(FormatError, match=message):
        from_json(text)


def test_every_truncated_text_is_refused():
    text = to_json(families.vera().bind(SITES, rank=2))
    for length in range(len(text)):
        with pytest.raises(FormatError, match=NOT_JSON):
            from_json(text[:length])
