"""Lines that are broken between words, and the columns that a text takes."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnadapt._table import columns_of, wrap

NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")


@pytest.mark.parametrize(("text", "columns"), [("", 0), ("1,024", 5), ("e\u0301", 1), ("\u4e2d", 2), ("●─", 2)])
def test_columns_are_those_of_a_terminal(text, columns):
    assert columns_of(text) == columns


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("trains 34,320", ["trains", "34,320"]),
        ("  A  in r zeros", ["  A  in r", "zeros"]),
        ("rank <= 8 of 4 x 8", ["rank <= 8", "of 4 x 8"]),
        ("layers.10.q_proj", ["layers.10.", "q_proj"]),
        ("q_p.k_proj_2", ["q_p.", "k_proj_2"]),
        ("many_letters", ["many_", "letters"]),
        ("relativeerror", ["relativeer", "ror"]),
        ("1,234,567,890,123", ["1,234,567,890,123"]),
        ("about 1,234,567,890,123 in all", ["about", "1,234,567,890,123", "in all"]),
        ("-1.5e-05 -2", ["-1.5e-05", "-2"]),
        ("one line", ["one line"]),
        ("", [""]),
    ],
)
def test_a_line_is_broken_between_words_and_never_in_a_number(text, lines):
    assert wrap(text, 10) == lines


def test_the_lines_that_follow_hang():
    assert wrap("holds  law: one two three", 14, hang="       ") == ["holds  law:", "       one two", "       three"]


WORD = st.one_of(
    st.integers(0, 10**9).map("{:,}".format),
    st.floats(-1e9, 1e9, allow_nan=False).map("{:.3g}".format),
    st.sampled_from(["trains", "x", "<=", "layers.3.", "self_attn", "%", "(cut", "r)", "in*r", "1024x1024"]),
)


@given(st.lists(WORD, min_size=1).map(" ".join), st.integers(8, 60), st.integers(0, 4).map(" ".__mul__))
def test_no_text_loses_or_breaks_a_number(text, columns, hang):
    lines = wrap(text, columns, hang=hang)
    assert Counter(NUMBER.findall("\n".join(lines))) == Counter(NUMBER.findall(text))
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    longest = max(map(len, NUMBER.findall(text)), default=0)
    assert all(columns_of(line) <= max(columns, len(hang) + longest + 12) for line in lines)
