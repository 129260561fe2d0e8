"""A network as boxes and strokes."""

import pytest

from tnadapt import draw, families
from tnadapt._diagram.scene import Box, Stroke, line, text_width


def test_a_wider_text_is_wider():
    assert text_width("", 12) == 0
    assert text_width("in", 12) < text_width("out", 12) < text_width("WWW", 12)
    assert text_width("out", 24) == 2 * text_width("out", 12)
    assert text_width("層", 12) > text_width("i", 12)


def test_what_is_moved_keeps_everything_else():
    box = Box("factor", "A", 1.0, 2.0, 3.0, 4.0, of="A", is_frozen=True)
    assert box.moved(10, 20) == Box("factor", "A", 11.0, 22.0, 3.0, 4.0, of="A", is_frozen=True)
    stroke = Stroke("mode", "r", ((0.0, 0.0), (1.0, 1.0)), ends=("A", "B"))
    assert stroke.moved(1, 2) == Stroke("mode", "r", ((1.0, 2.0), (2.0, 3.0)), ends=("A", "B"))


def test_a_line_through_corners_is_made_of_cubic_pieces():
    points = line((0.0, 0.0), (3.0, 0.0), (3.0, 6.0))
    assert len(points) == 7
    assert (points[0], points[3], points[-1]) == ((0.0, 0.0), (3.0, 0.0), (3.0, 6.0))


@pytest.mark.parametrize("name", ["lora", "lotr", "vera", "tlora", "loha"])
def test_every_factor_and_every_mode_is_shown(name):
    spec = getattr(families, name)()
    diagram = draw(spec)
    assert sorted(box.of for box in diagram.boxes if box.kind == "factor") == sorted(spec.factors)
    modes = {mode for factor in spec.factors.values() for mode in factor.modes}
    assert {stroke.of for stroke in diagram.strokes if stroke.kind in ("mode", "site")} >= modes - {*spec.site_modes}
