"""A network as boxes and strokes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.diagram.shown import shown
from tnadapt import families, trainable
from tnadapt._diagram.scene import Box, Scene, Stroke, line, text_width
from tnadapt._diagram.subject import Subject
from tnadapt.testing import specs


def scene_of(spec, sizes=None, cut=()):
    return Scene(Subject(spec.axes, spec.site_modes, shown(spec), sizes or {}, cut))


def boxes_of(scene, *kinds):
    return {box.of: box for box in scene.boxes if box.kind in kinds}


def middle(box):
    return box.x + box.width / 2, box.y + box.height / 2


@given(text=st.text("aimW_ö層", max_size=9), more=st.text("aimW_ö層", min_size=1, max_size=9))
def test_a_longer_text_is_wider(text, more):
    assert 0 <= text_width(text, 12) < text_width(text + more, 12)


def test_the_width_of_a_text_follows_its_letters_and_its_size():
    assert text_width("", 12) == 0
    assert text_width("i", 12) < text_width("W", 12) < text_width("層", 12)
    assert text_width("out", 24) == 2 * text_width("out", 12)


def test_what_is_moved_keeps_everything_else():
    box = Box("factor", "A", 1.0, 2.0, 3.0, 4.0, of="A", is_frozen=True)
    assert box.moved(10, 20) == Box("factor", "A", 11.0, 22.0, 3.0, 4.0, of="A", is_frozen=True)
    stroke = Stroke("mode", "r", ((0.0, 0.0), (1.0, 1.0)), ends=("A", "B"))
    assert stroke.moved(1, 2) == Stroke("mode", "r", ((1.0, 2.0), (2.0, 3.0)), ends=("A", "B"))


def test_a_line_through_corners_is_made_of_cubic_pieces():
    points = line((0.0, 0.0), (3.0, 0.0), (3.0, 6.0))
    assert len(points) == 7
    assert (points[0], points[3], points[-1]) == ((0.0, 0.0), (3.0, 0.0), (3.0, 6.0))


@given(spec=specs())
def test_the_upper_left_corner_is_0_and_a_name_fits_in_its_node(spec):
    scene = scene_of(spec)
    points = [point for stroke in scene.strokes for point in stroke.points]
    points += [
        (box.x + right, box.y + down) for box in scene.boxes for right in (0, box.width) for down in (0, box.height)
    ]
    for side, length in enumerate((scene.width, scene.height)):
        assert min(point[side] for point in points) == pytest.approx(0)
        assert max(point[side] for point in points) == pytest.approx(length)
    for box in scene.boxes:
        if box.text:
            assert text_width(box.text, 14 if box.kind == "factor" else 12) <= box.width + 1e-9


@pytest.mark.parametrize("name", ["lora", "lotr", "vera", "tlora"])
def test_a_product_of_matrices_lies_on_one_line_from_out_to_in(name):
    boxes = boxes_of(scene_of(getattr(families, name)()), "factor", "end")
    line = ["out", *[factor for factor in "BACG" if factor in boxes], "in"]
    assert len({middle(boxes[one])[1] for one in line}) == 1
    for box in boxes.values():
        assert box.of in ("out", "in") or boxes["out"].x + boxes["out"].width < box.x < boxes["in"].x


def test_a_vector_stands_above_the_dot_of_its_mode():
    scene = scene_of(families.vera())
    nodes, dots = boxes_of(scene, "factor"), boxes_of(scene, "dot")
    assert set(dots) == {"out", "r"}
    for vector, mode in (("b", "out"), ("d", "r")):
        assert middle(nodes[vector])[0] == pytest.approx(middle(dots[mode])[0])
        assert nodes[vector].y + nodes[vector].height < dots[mode].y


def test_a_scalar_stands_below_everything_that_is_joined():
    column = {f"G{number}": trainable("out in") for number in range(4)}
    scene = Scene(Subject((("out",), ("in",)), (), column | {"s": trainable("")}))
    nodes = boxes_of(scene, "factor")
    assert nodes["s"].y > max(nodes[name].y + nodes[name].height for name in column)


@pytest.mark.parametrize("name", ["A", "a_longer_name", "核" * 5])
def test_a_node_is_as_wide_as_its_name(name):
    scene = Scene(Subject((("out",), ("in",)), (), {name: trainable("out r"), "B": trainable("r in")}))
    assert boxes_of(scene, "factor")[name].width > text_width(name, 14)


def test_nodes_are_frozen_and_shared_as_their_factors_are():
    nodes = boxes_of(scene_of(families.vera()), "factor")
    assert {name for name, box in nodes.items() if box.is_frozen} == {"A", "B"}
    assert {name for name, box in nodes.items() if box.is_shared} == {"A", "B"}
    nodes = boxes_of(scene_of(families.lotr()), "factor")
    assert {name for name, box in nodes.items() if box.is_shared} == {"A", "B"}
    assert not any(box.is_frozen for box in nodes.values())


@pytest.mark.parametrize("cut", [(), ("p",), ("q",), ("p", "q"), ("out",)])
def test_the_modes_of_a_cut_are_marked(cut):
    scene = scene_of(families.lotr(), cut=cut)
    assert {stroke.of for stroke in scene.strokes if stroke.kind == "cut"} == set(cut)
    assert {stroke.of for stroke in scene.strokes if stroke.is_cut} == set(cut)
    assert {box.of for box in scene.boxes if box.is_cut} == set(cut)


def test_a_site_mode_that_no_factor_carries_is_shown():
    scene = scene_of(replace(families.lora(), over="layer"))
    assert [box.text for box in scene.boxes if box.kind == "site"] == ["layer (in no factor)"]


def test_a_site_mode_is_a_leg_of_each_factor_that_carries_it():
    scene = scene_of(families.tlora(), sizes={"site": 24})
    legs = [stroke for stroke in scene.strokes if stroke.kind == "site"]
    assert sorted(stroke.ends for stroke in legs) == [("A",), ("B",), ("C",), ("a",)]
    assert [box.text for box in scene.boxes if box.kind == "site"] == ["site = 24"] * 4


def test_a_split_axis_is_bracketed():
    spec = families.tera(out_order=2, in_order=1)
    assert [box.text for box in scene_of(spec).boxes if box.kind == "axis"] == ["out"]
    spec = families.tera(out_order=1, in_order=2)
    boxes = scene_of(spec, sizes={"i1": 4, "i2": 400}).boxes
    assert [box.text for box in boxes if box.kind == "axis"] == ["in = 1,600"]
    assert [(stroke.of, stroke.ends) for stroke in scene_of(spec).strokes if stroke.kind == "axis"] == [
        ("i1 i2", ("i1", "i2"))
    ]
