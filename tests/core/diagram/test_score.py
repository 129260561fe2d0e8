"""A network as text: a dot for every mode of every factor, three families whole, and tables that are too wide."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.diagram.shown import shown
from tnadapt import draw, families, frozen, grid, trainable
from tnadapt._diagram.score import LONGEST, WIDTH, _short, score
from tnadapt._diagram.subject import Subject
from tnadapt.testing import adapters, specs

LOTR = """\
lotr
updates weights [out in], stacked over site
trains out*p + site*p*q + in*q

              out   bond          in   site
              out   p      q      in   site
  A  shared    ●────●
  G                 ●──────●────────────●
  B  shared                ●──────●"""


VERA = """\
[out in] = 12 x 8
rank ≤ 3: cut r
trains 15 entries, holds 60 frozen

              out   bond   in
              out   r      in
              12    3      8
  b            ●
▒ B  shared    ●────●
  d                 ●
▒ A  shared         ●──────●

▒ frozen"""


TERA = """\
tera
updates weights [(o1 o2) i1], stacked over site
trains site*r_o1 + site*r_o2 + site*r_i1

                 out         bond                 in   site
                 o1    o2    r_o1   r_o2   r_i1   i1   site
▒ U_o1  shared   ●────────────●
▒ U_o2  shared         ●──────┼──────●
  d_o1                        ●──────┼──────────────────●
▒ G  shared                   ●──────●──────●           │
  d_o2                               ●──────┼───────────●
  d_i1                                      ●───────────●
▒ U_i1  shared                              ●─────●

▒ frozen"""  # all three read off their equations by hand: a dot is a mode in the string of a factor


def test_the_text_of_three_families():
    assert str(draw(families.lotr())) == LOTR
    assert str(draw(families.vera().bind(grid(layers=1, kinds={"q": (12, 8)}), rank=3).networks[0])) == VERA
    assert str(draw(families.tera(out_order=2, in_order=1))) == TERA


def test_a_wide_text_continues_below():
    text = str(draw(families.tera(out_order=5, in_order=5)))
    assert text.count("▒ U_o1  shared") == 2
    assert max(map(len, text.splitlines())) <= 100


def blocks_of(lines):
    """The tables that stand one below the other."""
    text = "\n".join(lines).removeprefix("\n")
    return [block.split("\n") for block in text.split("\n\n")]


def starts_of(names):
    """Where each word of a line begins, by the word."""
    found, at = {}, 0
    for word in names.split():
        at = names.index(word, at)
        found[word] = at
        at += len(word)
    return found


def dots_of(lines, *, heads):
    """Every factor with the modes that have a dot in its row; `heads` lines stand above the rows."""
    found = {}
    for block in blocks_of(lines):
        centres = {start + (len(name) - 1) // 2: name for name, start in starts_of(block[1]).items()}
        for row in block[heads:]:
            dots = [at for at, letter in enumerate(row) if letter == "●"]
            assert set(dots) <= centres.keys()
            assert all(row[at] in "─┼●" for at in range(min(dots, default=0), max(dots, default=-1)))
            name = row.removeprefix("▒").split()[0]
            found.setdefault(name, set()).update(centres[at] for at in dots)
    return found


@given(spec=specs())
def test_every_factor_has_a_dot_below_each_of_its_modes(spec):
    factors = shown(spec)
    lines = score(Subject(spec.axes, spec.site_modes, factors))
    assert dots_of(lines, heads=2) == {name: set(factor.modes) for name, factor in factors.items()}


@given(adapter=adapters(), size=st.integers(1, 10**12))
def test_the_size_of_every_mode_stands_below_its_name(adapter, size):
    network = adapter.networks[0]
    sizes = {mode: size + number for number, mode in enumerate(network.sizes)}
    lines = score(Subject(network.axes, network.over, network.factors, sizes))
    assert dots_of(lines, heads=3) == {name: set(factor.modes) for name, factor in network.factors.items()}
    for block in blocks_of(lines):
        assert {at: f"{sizes[name]:,}" for name, at in starts_of(block[1]).items()} == {
            at: block[2][at:].split()[0] for at in starts_of(block[1]).values()
        }


def columns_of(text):
    """Columns of a terminal, by the standard's tables."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


@pytest.mark.parametrize("name", ["long_" * 20, "核" * 30, "e\u0301" * 40, "a核e\u0301" * 12])
def test_a_long_name_is_cut_and_what_stands_behind_it_stays_in_line(name):
    factors = {name: trainable("out r"), "B": frozen("r in")}
    lines = score(Subject((("out",), ("in",)), (), factors))
    (row,) = (line for line in lines if "…" in line)
    head = row.partition("●")[0]
    assert columns_of(head.strip()) <= LONGEST
    assert columns_of(head) == lines[2].index("out") + 1  # the middle of three letters
    assert row.count("●") == 2


def test_names_of_modes_that_are_too_long_make_more_tables():
    names = [f"{letter}_" * 30 for letter in "abcdefgh"]
    lines = score(Subject((("out",), ("in",)), (), {"A": trainable(" ".join(["out", "in", *names]))}))
    assert max(map(columns_of, lines)) <= WIDTH
    assert sum(line.count("●") for line in lines) == 10
    assert len(blocks_of(lines)) == 3


def test_a_name_of_24_columns_is_whole_and_a_longer_one_is_cut():
    assert _short("x" * 24) == "x" * 24
    assert _short("x" * 25) == "x" * 23 + "…"
