"""Strings that name modes: how they are parsed, and which brackets are invalid."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnadapt._language.notation import axes_of, modes_of, text_of

WORDS = st.from_regex(r"[a-z_][a-z0-9_]{0,3}", fullmatch=True)
AXES = st.lists(st.lists(WORDS, min_size=1, max_size=4).map(tuple), max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("", ()),
        ("out in", (("out",), ("in",))),
        ("(head dim) in", (("head", "dim"), ("in",))),
        ("out in kh kw", (("out",), ("in",), ("kh",), ("kw",))),
        ("(o1 o2 o3) (i1 i2)", (("o1", "o2", "o3"), ("i1", "i2"))),
        ("(out) in", (("out",), ("in",))),
        ("out(a b)in", (("out",), ("a", "b"), ("in",))),
        ("  (  head\tdim )\n in ", (("head", "dim"), ("in",))),
    ],
)
def test_a_string_is_parsed_into_axes(text, axes):
    assert axes_of(text) == axes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(head dim in", r"'\(' is never closed"),
        ("out (", r"'\(' is never closed"),
        ("head dim) in", r"'\)' closes nothing"),
        ("(a b)) in", r"'\)' closes nothing"),
        ("() in", r"'\)' closes nothing"),
        ("((a b) c) in", "a bracket inside a bracket"),
        (") (", r"'\)' closes nothing"),
    ],
)
def test_invalid_brackets_raise_a_value_error(text, message):
    with pytest.raises(ValueError, match=message):
        axes_of(text)


@pytest.mark.parametrize(
    ("text", "modes"),
    [
        ("", ()),
        ("  ", ()),
        ("site p q", ("site", "p", "q")),
        (" out\t p\n", ("out", "p")),
        ("(a b)", ("(", "a", "b", ")")),
    ],
)
def test_a_string_is_parsed_into_modes(text, modes):
    assert modes_of(text) == modes


@given(AXES)
def test_text_of_is_the_inverse_of_axes_of(axes):
    assert axes_of(text_of(axes)) == axes


@given(st.lists(WORDS, max_size=5))
def test_words_become_modes(words):
    assert modes_of("  ".join(words)) == tuple(words)
