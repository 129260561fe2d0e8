"""Families are short, and no other folder depends on the name of a family."""

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
def test_no_folder_of_the_core_depends_on_the_name_of_a_family(path):
    words = set(re.findall(r"families\.([a-z_]+)\(|== \"([a-z_]+)\"", path.read_text(encoding="utf-8")))
    assert not {word for pair in words for word in pair} & set(tnadapt.families.__all__)
