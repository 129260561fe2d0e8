"""Diagrams: nothing overlaps, everything is shown once, and the text of three families, whole."""

from itertools import combinations
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.laws.strategies import adapters, specs
from tnadapt import AdapterSpec
from tnadapt._draw import draw

SVG = "{http://www.w3.org/2000/svg}"
TOUCH = 1e-6  # two boxes side by side may touch


def overlaps(diagram):
    """Pairs of boxes that share more than a border."""
    return [
        (one, two)
        for one, two in combinations(diagram.boxes, 2)
        if min(one.x + one.width, two.x + two.width) - max(one.x, two.x) > TOUCH
        and min(one.y + one.height, two.y + two.height) - max(one.y, two.y) > TOUCH
    ]


def points_of(stroke):
    """Points along a stroke, close enough that no box lies between two of them."""
    yield stroke.points[0]
    for at in range(1, len(stroke.points), 3):
        (a, b, c, d) = stroke.points[at - 1 : at + 3]
        for step in range(1, 21):
            t = step / 20
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
            yield tuple(sum(w * p[side] for w, p in zip(weights, (a, b, c, d), strict=True)) for side in (0, 1))


def trespasses(diagram):
    """Boxes that a stroke runs through: of a node or a dot only its own strokes may come near, of a text none."""
    return [
        (stroke, box)
        for stroke in diagram.strokes
        for box in diagram.boxes
        if not (box.kind == "dot" and box.of == stroke.of) and box.kind != "key"
        for x, y in points_of(stroke)
        if box.x + 0.5 < x < box.x + box.width - 0.5 and box.y + 0.5 < y < box.y + box.height - 0.5
    ]


def strays(diagram):
    """What lies outside of the card."""
    corners = [(box, box.x, box.y) for box in diagram.boxes]
    corners += [(box, box.x + box.width, box.y + box.height) for box in diagram.boxes]
    corners += [(stroke, *point) for stroke in diagram.strokes for point in stroke.points]
    return [what for what, x, y in corners if not (0 < x < diagram.width and 0 < y < diagram.height)]


def assert_clean(of):
    """Nothing overlaps, nothing is crossed, nothing is lost, and both forms can be read."""
    diagram = draw(of)
    assert overlaps(diagram) == []
    assert trespasses(diagram) == []
    assert strays(diagram) == []
    assert sorted(box.of for box in diagram.boxes if box.kind == "factor") == sorted(of.factors)
    over = of.site_modes if isinstance(of, AdapterSpec) else of.over
    modes = {mode for axis in of.axes for mode in axis} | {mode for one in of.factors.values() for mode in one.modes}
    assert {box.of for box in diagram.boxes if box.kind in ("mode", "end", "site")} == modes | set(over)
    texts = [element.text for element in ElementTree.fromstring(diagram.svg()).iter(f"{SVG}text")]
    assert sorted(texts) == sorted(box.text for box in diagram.boxes if box.text)
    assert max(map(len, str(diagram).splitlines())) <= 100
    return diagram


def test_every_family_is_clean_as_a_spec_and_as_networks(adapter):
    for of in (adapter.spec, *adapter.networks):
        assert_clean(of)


@settings(max_examples=200)
@given(spec=st.one_of(specs(), specs(centered=True)))
def test_a_random_spec_is_clean(spec):
    assert_clean(spec)


@settings(max_examples=100)
@given(adapter=st.one_of(adapters(), adapters(centered=True)))
def test_a_random_network_is_clean(adapter):
    for network in dict.fromkeys(adapter.networks):
        assert_clean(network)
