"""The table in docs/reference/families.md is the output of `python docs/examples/families_table.py`."""

import runpy
from pathlib import Path

import pytest

import tnadapt

DOCS = Path(__file__).parents[2] / "docs"
PROGRAM = runpy.run_path(str(DOCS / "examples" / "families_table.py"))
PAGE = (DOCS / "reference" / "families.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table():
    return PROGRAM["table"]()


def test_the_page_contains_the_current_table(table):
    assert PROGRAM["page"](PAGE, table) == PAGE


def test_every_family_has_a_row_and_a_picture(table):
    for family in tnadapt.families.__all__:
        assert table.count(f"\n| `{family}` | ") == 1
        assert f"pictures/{family}.svg" in PAGE


def test_an_outdated_page_is_noticed(table):
    changed = PAGE.replace("294,912", "294,913")
    assert PROGRAM["page"](changed, table) == PAGE
    assert PROGRAM["page"](changed, table) != changed
