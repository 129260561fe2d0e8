"""A family is short, and no other room knows one by its name."""

import inspect
import re
from pathlib import Path

import pytest

import tnadapt

ROOMS = Path(tnadapt.__file__).parent


@pytest.mark.parametrize("name", tnadapt.families.__all__)
def test_a_family_has_at_most_forty_lines_with_its_docstring(name):
    assert len(inspect.getsource(getattr(tnadapt.families, name)).splitlines()) <= 40


@pytest.mark.parametrize(
    "path", sorted(ROOMS.rglob("_[a-z]*/*.py")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_no_room_of_the_core_tells_families_apart(path):
    words = set(re.findall(r"families\.([a-z_]+)\(|== \"([a-z_]+)\"", path.read_text(encoding="utf-8")))
    assert not {word for pair in words for word in pair} & set(tnadapt.families.__all__)
