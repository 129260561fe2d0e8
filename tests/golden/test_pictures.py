"""The pictures in the docs are up to date: `tnadapt draw FAMILY -o docs/pictures/FAMILY.svg` makes them."""

from pathlib import Path

import pytest

from tnadapt import draw, families

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"


@pytest.mark.parametrize("name", families.__all__)
def test_a_picture_equals_the_drawing_of_its_family(name):
    assert (PICTURES / f"{name}.svg").read_text(encoding="utf-8") == draw(getattr(families, name)()).svg()


def test_there_are_no_other_pictures():
    assert {path.stem for path in PICTURES.iterdir()} == set(families.__all__)
