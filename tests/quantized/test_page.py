"""The table of docs/guides/torch.md says what the tests of this folder measure."""

import re
from pathlib import Path

import pytest

from tests.quantized.ways import WAYS

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "torch.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\| (.*) \|$", PAGE.split("## Quantized models\n")[1].split("\n## ")[0], flags=re.MULTILINE)
HEAD, *TABLE = [[cell.strip() for cell in line.split("|")] for line in LINES]


@pytest.mark.parametrize("name", WAYS)
def test_a_way_has_a_row_and_the_row_is_right(name):
    assert HEAD == ["how the layer stores its weight", "train", "save, load", "starts that read the weight", "merge"]
    way = WAYS[name]
    (row,) = [row for row in TABLE if row[0] == way.row]
    said = {True: "yes", False: "refused"}
    assert row[1:] == [said[way.passes], "yes", said[way.reads], "refused"]


def test_every_row_is_measured():
    assert [row[0] for row in TABLE] == list(dict.fromkeys(way.row for way in WAYS.values()))
