"""Diagrams: nothing overlaps, everything is shown once, and the text of three families, whole."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.diagram.shown import shown, shown_terms
from tests.table import REPRESENTATIVES
from tests.thorough import IS_THOROUGH, each_kind
from tnadapt import AdapterSpec, SpecError, draw, families, frozen, grid, raw, same, trainable, zeros
from tnadapt.binding import Factor, Network, minimum_cut
from tnadapt.initializers import host
from tnadapt.testing import adapters, specs

representative = pytest.mark.parametrize("adapter", REPRESENTATIVES, indirect=True)
ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
FACTOR = f"{SVG}g[{SVG}text]"  # the groups with a name: the signs of the legend have none
TOUCH = 1e-6  # boxes side by side may touch
LINED = 0.5  # an edge ends at the border of its node


def overlaps(diagram):
    """Pairs of boxes that share more than a border."""
    return [
        (one, two)
        for one, two in combinations(diagram.boxes, 2)
        if min(one.x + one.width, two.x + two.width) - max(one.x, two.x) > TOUCH
        and min(one.y + one.height, two.y + two.height) - max(one.y, two.y) > TOUCH
    ]


def along(stroke):
    """Points of a stroke, a few pixels apart."""
    yield stroke.points[0]
    for at in range(1, len(stroke.points), 3):
        piece = stroke.points[at - 1 : at + 3]
        for step in range(1, 17):
            t = step / 16
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
            x, y = (sum(w * point[side] for w, point in zip(weights, piece, strict=True)) for side in (0, 1))
            yield x, y


def trespasses(diagram):
    """Strokes that run through a node or a text, be it their own, or through the dot of another mode."""
    found = []
    for stroke in diagram.strokes:
        points = list(along(stroke))
        (left, top), (right, bottom) = ([pick(axis) for axis in zip(*points, strict=True)] for pick in (min, max))
        for box in diagram.boxes:
            if box.kind == "key" or (box.kind == "dot" and box.of == stroke.of):
                continue
            x, y, u, v = box.x + LINED, box.y + LINED, box.x + box.width - LINED, box.y + box.height - LINED
            is_near = left < u and right > x and top < v and bottom > y
            if is_near and any(x < a < u and y < b < v for a, b in points):
                found.append((stroke, box))
    return found


def strays(diagram):
    """What lies outside of the card."""
    corners = [(box, box.x, box.y) for box in diagram.boxes]
    corners += [(box, box.x + box.width, box.y + box.height) for box in diagram.boxes]
    corners += [(stroke, *point) for stroke in diagram.strokes for point in stroke.points]
    return [what for what, x, y in corners if not (0 < x < diagram.width and 0 < y < diagram.height)]


def over_of(of):
    return of.site_modes if isinstance(of, AdapterSpec) else of.over


def assert_clean(of):
    """Nothing overlaps, nothing is crossed, nothing is lost or shown twice, and both forms can be read."""
    diagram = draw(of)
    assert overlaps(diagram) == []
    assert trespasses(diagram) == []
    assert strays(diagram) == []
    boxes = {kind: sorted(box.of for box in diagram.boxes if box.kind == kind) for kind in ("factor", "mode", "end")}
    weight = {mode for axis in of.axes for mode in axis}
    factors = shown(of)
    outer, terms = weight | set(over_of(of)), shown_terms(of)
    bonds = [mode for term in terms for mode in {m for name in term.nodes for m in factors[name].modes} - outer]
    names = [name for term in terms for name in term.nodes]
    assert boxes == {"factor": sorted(names), "mode": sorted(bonds), "end": sorted([*weight] * len(terms))}
    stubs = {(stroke.of, *stroke.ends) for stroke in diagram.strokes if stroke.kind == "site" and stroke.of}
    carried = {(mode, name) for name, factor in factors.items() for mode in factor.modes if mode in over_of(of)}
    present = [{mode for name in term.nodes for mode in factors[name].modes} for term in terms]
    bare = {(mode,) for mode in over_of(of) if any(mode not in modes for modes in present)}
    assert stubs == carried | bare
    texts = [element.text for element in ElementTree.fromstring(diagram.svg()).iter(f"{SVG}text")]
    assert sorted(texts) == sorted(box.text for box in diagram.boxes if box.text)
    assert max(map(len, str(diagram).splitlines())) <= 100


def joins(diagram):
    """Every mode with the factors that its strokes reach."""
    reached = {}
    for stroke in diagram.strokes:
        if stroke.kind == "mode" and stroke.of:
            reached.setdefault(stroke.of, set()).update(set(stroke.ends) - {stroke.of})
    return reached


OTHERS = {
    "product operator": AdapterSpec(
        name="product_operator",
        weight="(o1 o2 o3 o4) (i1 i2 i3 i4)",
        over="layer",
        factors={
            "G1": trainable("o1 i1 a"),
            "G2": frozen("a o2 i2 b"),
            "G3": trainable("b o3 i3 c"),
            "G4": trainable("c o4 i4 layer", init=zeros()),
        },
        scale=raw(),
    ),
    "ring": AdapterSpec(
        name="ring",
        weight="(o1 o2) (i1 i2)",
        factors={
            "G1": trainable("o1 a d"),
            "G2": trainable("a o2 b"),
            "G3": frozen("b i1 c"),
            "G4": trainable("c i2 d", init=zeros()),
        },
        scale=raw(),
    ),
    "many vectors": AdapterSpec(
        name="many_vectors",
        weight="out in kh kw",
        over="kind layer",
        factors={
            "A": trainable("out r kind layer"),
            "B": frozen("r s in"),
            "C": trainable("s kh kw", init=zeros()),
            **{name: trainable("out") for name in "abc"},
            **{name: trainable("r kind layer") for name in "defgh"},
            "z": trainable(""),
        },
        scale=raw(),
    ),
    "letters": AdapterSpec(
        name="名前",
        weight="(高さ ö) " + "in" * 40,
        over="層",
        factors={
            "核" * 30: trainable("高さ ö µ"),
            "_".join(["long"] * 25): frozen("µ " + "in" * 40 + " 層 " + "bond" * 20),
            "é": trainable("bond" * 20, init=zeros()),
        },
        scale=raw(),
    ),
}


@pytest.fixture(params=OTHERS)
def other(request):
    return OTHERS[request.param]


def bound(spec, size=16):
    kinds = {"q": (size,) * len(spec.axes)}
    sites = grid(layers=3, kinds=kinds) if spec.name != "名前" else grid(layers=1, kinds=kinds)
    if "層" in spec.over:
        sites = tuple(type(site)(site.path, site.shape, {"層": 0}) for site in sites)
    return spec.bind(sites, rank=4, sizes={"head": 1} if spec.name == "lorta" else None, overparametrized=True)


@each_kind
def test_the_pictures_of_every_family_are_clean(adapter):
    for of in (adapter.spec, *adapter.networks):
        assert_clean(of)


@pytest.mark.parametrize("size", [1, 16, 2**20])
def test_other_networks_are_clean(other, size):
    assert_clean(other)
    assert_clean(bound(other, size).networks[0])


@settings(max_examples=200 if IS_THOROUGH else 25)
@given(spec=st.one_of(specs(), specs(start="centered")))
def test_a_random_spec_is_drawn_right(spec):
    assert_clean(spec)
    assert_joined(spec)
    assert_marked(spec)


@settings(max_examples=100 if IS_THOROUGH else 15)
@given(adapter=st.one_of(adapters(), adapters(start="centered")))
def test_a_random_network_is_drawn_right(adapter):
    network = adapter.networks[0]
    assert_clean(network)
    assert_joined(network)
    assert_marked(network)
    assert_cut(network)


def assert_joined(of):
    carriers = {}
    for name, factor in shown(of).items():
        for mode in set(factor.modes) - set(over_of(of)):
            carriers.setdefault(mode, set()).add(name)
    assert joins(draw(of)) == carriers


@representative
def test_an_edge_ends_at_every_factor_that_carries_its_mode(adapter):
    assert_joined(adapter.spec)
    assert_joined(adapter.networks[0])


def test_an_edge_of_other_networks_ends_at_its_factors(other):
    assert_joined(other)


def test_a_product_operator_is_one_column_with_upright_bonds():
    diagram = draw(OTHERS["product operator"])
    boxes = [box for box in diagram.boxes if box.kind == "factor"]
    assert len({box.x for box in boxes}) == 1
    assert sorted(boxes, key=lambda box: box.y) == sorted(boxes, key=lambda box: box.of)
    bonds = [stroke for stroke in diagram.strokes if stroke.of in ("a", "b", "c")]
    assert [{x for x, _ in stroke.points} for stroke in bonds] == [{boxes[0].x + boxes[0].width / 2}] * 3


def assert_marked(of):
    picture = ElementTree.fromstring(draw(of).svg())
    nodes = {group.find(f"{SVG}text").text: group.findall(f"{SVG}rect") for group in picture.findall(FACTOR)}
    hatched = {name for name, rects in nodes.items() if rects[0].get("fill") == "url(#hatch)"}
    factors = shown(of)
    assert hatched == {name for name, factor in factors.items() if not factor.trainable}
    assert (picture.find(f"{SVG}defs") is not None) == bool(hatched)
    double = {name for name, rects in nodes.items() if len(rects) == 2}
    private = {name for name, one in factors.items() if one.init.is_host or set(one.modes) & set(over_of(of))}
    everywhere = hatched | {name for name, factor in factors.items() if factor.shared}
    assert double == (set(factors) if over_of(of) else everywhere) - private


@representative
def test_frozen_factors_are_hatched_and_shared_factors_have_a_double_border(adapter):
    assert_marked(adapter.spec)
    assert_marked(adapter.networks[0])


def test_other_networks_are_hatched_and_bordered_alike(other):
    assert_marked(other)


def assert_cut(network):
    diagram, cut = draw(network), minimum_cut(network)
    marked = [stroke.of for stroke in diagram.strokes if stroke.kind == "cut" and stroke.of]
    known = {mode for factor in shown(network).values() for mode in factor.modes}
    drawn = set(cut.modes) & known
    assert set(marked) == drawn
    assert len(marked) == len(drawn) or len(shown_terms(network)) > 1
    assert {stroke.of for stroke in diagram.strokes if stroke.is_cut and stroke.of} == drawn
    assert drawn == set(cut.modes)
    twice = f"{cut.times} times " if cut.times > 1 else ""
    caption = f"rank ≤ {cut.rank:,}: {twice}cut {', '.join(cut.modes) or 'nothing'}"
    assert caption in str(diagram).splitlines()
    text = " ".join(str(diagram).split())
    is_centered = "centered: minus the same network at its starting values" in text
    assert is_centered == (len(shown_terms(network)) < len(network.terms))


@representative
def test_the_cut_is_the_minimum_cut(adapter):
    assert_cut(adapter.networks[0])
    assert not any(stroke.is_cut for stroke in draw(adapter.spec).strokes)


def test_a_centered_network_is_cut_twice():
    network = families.pissa().bind(grid(layers=1, kinds={"q": (12, 8)}), rank=3).networks[0]
    lines = str(draw(network)).splitlines()
    assert lines[1] == "rank ≤ 6: 2 times cut r"
    assert lines[3] == "centered: minus the same network at its starting values"


SUM = AdapterSpec(
    name="sum",
    weight="out in",
    factors={
        "A": trainable("r in"),
        "B": trainable("out r", init=zeros()),
        "C": trainable("q r", shared=True),
        "Ct": same("C", "q s"),
        "D": trainable("out s", init=zeros()),
        "A0": same("A", at_start=True),
        "W": frozen("out in", init=host()),
    },
    terms=["B A", "- D Ct C A", "B A0 W"],
)


def test_a_sum_is_drawn_term_by_term_with_its_signs():
    network = SUM.bind(grid(layers=1, kinds={"q": (12, 8)}), rank=3).networks[0]
    for of in (SUM, network):
        diagram = draw(of)
        boxes = [box.of for box in diagram.boxes if box.kind == "factor"]
        assert sorted(boxes) == ["A", "A", "A0", "B", "B", "C", "Ct", "D", "W"]
        assert [line for line in str(diagram).splitlines() if line in LABELS] == LABELS
        assert [box.text for box in diagram.boxes if box.text in LABELS] == LABELS
    assert "trains 105 entries" in str(draw(network)).splitlines()  # the host's weight is not held


LABELS = ["+ A B", "- A C Ct D", "+ A0 B W"]


@pytest.mark.parametrize("first", ["- B A", "D Ct C A", "B A0 W"])
def test_whatever_term_is_first_is_drawn_with_its_copies_and_starts(first):
    terms = [first, *(term for term in SUM.terms if term.strip("- ") != first.strip("- "))]
    spec = replace(SUM, terms=terms)
    assert_clean(spec)
    assert_joined(spec)
    assert_marked(spec)
    network = spec.bind(grid(layers=1, kinds={"q": (12, 8)}), rank=3).networks[0]
    assert_clean(network)
    assert_marked(network)
    assert_cut(network)


def test_the_sign_of_a_single_term_is_said():
    factors = {"A": trainable("r in"), "B": trainable("out r", init=zeros())}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, terms=["- B A"])
    assert "- A B" in str(draw(spec)).splitlines()
    assert "+ A B" not in str(draw(replace(spec, terms=["B A"])))


def test_only_a_difference_from_the_start_is_called_centered():
    factors = {"A": trainable("r in"), "B": trainable("out r"), "A0": same("A", at_start=True)}
    factors |= {"B0": same("B", at_start=True)}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, terms=["B A", "- B0 A0"])
    assert "centered: minus the same network at its starting values" in str(draw(spec)).splitlines()
    other = replace(spec, terms=["B A", "B0 A0"], start="free")
    assert "centered" not in str(draw(other))


def test_a_network_says_its_sizes_and_counts():
    diagram = draw(families.vera().bind(grid(layers=1, kinds={"q": (12, 8)}), rank=3).networks[0])
    assert {"out = 12", "in = 8", "r = 3"} <= {box.text for box in diagram.boxes}
    assert "trains 15 entries, holds 60 frozen" in str(diagram).splitlines()


def test_names_are_escaped_in_the_picture():
    factors = {
        "A<&>": Factor(("out", "r"), zeros(), trainable=True),
        'B"': Factor(("r", "in"), zeros(), trainable=True),
    }
    network = Network((("out",), ("in",)), (), factors, {"out": 2, "in": 2, "r": 1}, 1.0)
    texts = [element.text for element in ElementTree.fromstring(draw(network).svg()).iter(f"{SVG}text")]
    assert {"A<&>", 'B"'} <= set(texts)


@representative
def test_a_picture_refers_to_nothing_outside(adapter):
    svg = draw(adapter.networks[0]).svg().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not any(word in svg for word in ("http", "href", "<script", "<style", "@import"))


PROBE = """\
from tests.table import places
from tnadapt import draw, families
for family in families.__all__[::{every}]:
    spec = getattr(families, family)()
    sizes = {{"head": 4}} if "head" in spec.weight else None
    rank = 2 if spec.free_bonds else None
    adapter = spec.bind(places(spec, layers=2, kinds={{"q": (12, 8)}}), rank=rank, sizes=sizes)
    for of in (spec, *adapter.networks):
        print(draw(of), draw(of).svg())
"""


def test_a_picture_is_the_same_in_every_process():
    seen = {
        subprocess.run(
            [sys.executable, "-c", PROBE.format(every=1 if IS_THOROUGH else 5)],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_the_text_has_the_columns_that_were_asked_for():
    wide, narrow = (str(draw(families.quanta(), columns=columns)) for columns in (200, 40))
    assert max(map(len, narrow.splitlines())) <= 40 < max(map(len, wide.splitlines()))
    assert narrow.count("●") == wide.count("●")
    assert str(draw(families.quanta(), columns=1)).count("●") == wide.count("●")  # one mode a table
    assert draw(families.quanta(), columns=40).svg() == draw(families.quanta()).svg()


@pytest.mark.parametrize("columns", [0, -1, 2.5, "80", True, None])
def test_anything_but_a_number_of_columns_is_refused(columns):
    with pytest.raises(SpecError, match=r"^draw: expected a whole number of columns, got .*\nWrite columns=80\.$"):
        draw(families.lora(), columns=columns)


def test_a_notebook_shows_the_picture():
    diagram = draw(families.lotr())
    assert diagram._repr_svg_() == diagram.svg()
