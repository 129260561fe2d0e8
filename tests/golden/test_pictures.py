"""The pictures of the docs are those that `draw` makes: `tnadapt draw FAMILY -o docs/pictures/FAMILY.svg`."""

from pathlib import Path

import pytest

from tnadapt import draw, families

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"


@pytest.mark.parametrize("name", families.__all__)
def test_a_picture_is_the_one_that_is_drawn(name):
    assert (PICTURES / f"{name}.svg").read_text(encoding="utf-8") == draw(getattr(families, name)()).svg()


def test_no_other_picture_lies_there():
    assert {path.stem for path in PICTURES.iterdir()} == set(families.__all__)
