"""The cards and the table in docs/reference/families.md are the output of `python docs/examples/families_table.py`."""

import re
from pathlib import Path

import pytest

import tnadapt
from tests.modules import example

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "reference" / "families.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def program():
    with example("families_table.py") as names:
        yield names


@pytest.fixture(scope="module")
def generated(program):
    return program["generated"]()


def test_the_page_contains_the_current_cards(program, generated):
    assert program["page"](PAGE, generated) == PAGE


def test_every_family_has_one_card_one_picture_and_one_row(program, generated):
    for family in tnadapt.families.__all__:
        assert generated.count(f"{{ #{family} }}") == 1
        assert generated.count(f"](../pictures/{family}.svg)") == 1
        assert generated.count(f"\n| [`{family}`](#{family}) | ") == 1
    grouped = [family for group in program["GROUPS"] for family in group.pictures]
    assert sorted(grouped) == sorted(tnadapt.families.__all__)


def test_every_card_has_an_equation(generated):
    assert generated.count('<p class="equation">&Delta;W') + generated.count('<p class="equation">block (') == len(
        tnadapt.families.__all__
    )


def test_the_page_says_how_many_families_and_groups_there_are(program):
    said = re.search(r"There are (\d+), in (\d+) groups", PAGE)
    assert (int(said[1]), int(said[2])) == (len(tnadapt.families.__all__), len(program["GROUPS"]))


def test_an_outdated_page_is_noticed(program, generated):
    changed = PAGE.replace("294,912", "294,913")
    assert program["page"](changed, generated) == PAGE
    assert program["page"](changed, generated) != changed


def test_an_equation_ends_before_the_words_and_has_its_signs(program):
    words = program["words_of"]("nola")
    assert words.name == "NOLA"
    assert words.equation == "dW = (alpha / r) (sum_k b_k V_k) (A0 + sum_n a_n U_n)"
    assert words.words == "combinations of random matrices"
    assert words.source == "arXiv:2310.02556"
    markup = program["card"].__globals__["markup"]
    assert markup("dW_s = alpha A_s^T kron B") == (
        "&Delta;W<sub>s</sub> = &alpha; A<sub>s</sub><sup>T</sup> &otimes; B"
    )
