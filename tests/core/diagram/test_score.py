"""A network as text: three families, whole, and a table that is too wide."""

from tnadapt import draw, families, grid
from tnadapt._diagram.score import _short

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


def test_a_name_of_24_columns_is_whole_and_a_longer_one_is_cut():
    assert _short("x" * 24) == "x" * 24
    assert _short("x" * 25) == "x" * 23 + "…"
