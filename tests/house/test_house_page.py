"""docs/house.md has a row for every room, and none for a room that is gone."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
TABLES = dict(re.findall(r"room of `(\w+)` \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE))


def rooms_of(package):
    paths = [path for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    return {path.stem if path.suffix else f"{path.name}/" for path in paths} - {"__init__"}


@pytest.mark.parametrize("package", ["tnadapt", "tnadapt_torch", "tnadapt_jax"])
def test_every_room_has_its_row_and_every_row_its_room(package):
    cells = [re.sub(r"\([^)]*\)", "", row.rsplit(" | ", 1)[0]) for row in TABLES[package].splitlines()]
    assert {name for cell in cells for name in re.findall(r"`([\w/]+)`", cell)} == rooms_of(package)
