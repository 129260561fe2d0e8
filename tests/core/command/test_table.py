"""Tables in few columns: turned, in parts, row by row, or with lines of text; every cell stays whole."""

from hypothesis import given
from hypothesis import strategies as st

from tnadapt._command.table import lay_out
from tnadapt._table import columns_of

ROWS = [("name", "kind", "trains", "step"), ("lora", "q", "8", "1"), ("lotr", "up", "1,024", "0.5")]
LONG = [*ROWS, ("vera", "k", "16", "2"), ("tera", "v", "32", "3")]
TEXT = [("family", "update"), ("lora", "a pair of matrices"), ("lotr", "a train of three, which all sites share")]


def lines(rows, columns, left=1):
    return [str(line) for line in lay_out(rows, left=left, columns=columns)]


def test_a_table_that_fits_is_printed_as_it_is():
    assert lines(ROWS, 24) == ["name  kind  trains  step", "lora     q       8     1", "lotr    up   1,024   0.5"]


def test_a_table_of_few_rows_is_turned():
    assert lines(ROWS, 23) == [
        "name    lora   lotr",
        "kind       q     up",
        "trains     8  1,024",
        "step       1    0.5",
    ]


def test_a_table_of_many_rows_goes_on_below():
    assert lines(LONG, 23, left=2) == [
        *("name  kind  trains", "lora  q          8", "lotr  up     1,024", "vera  k         16", "tera  v         32"),
        *("", "name  step", "lora     1", "lotr   0.5", "vera     2", "tera     3"),
    ]


def test_a_column_that_stood_to_the_left_does_so_in_a_later_part():
    (_, *parts) = "\n".join(lines([("a", "bb", "cccc", "d"), *[("1", "x", "y", "2")] * 4], 10, left=3)).split("\n\n")
    assert parts == ["a  cccc  d\n" + "\n".join(["1  y     2"] * 4)]


def test_a_row_too_wide_for_two_columns_is_printed_cell_by_cell():
    rows = [("site", "shape", "error"), ("model.layers.10.self_attn.q_proj", "4096 x 4096", "0.25")]
    assert lines(rows, 24, left=2) == [
        "model.layers.10.",
        "self_attn.q_proj",
        "  shape  4096 x 4096",
        "  error  0.25",
    ]


def test_a_text_in_the_last_column_is_broken_between_words():
    assert lines(TEXT, 33, left=2) == [
        "family  update",
        "lora    a pair of matrices",
        "lotr    a train of three, which",
        "        all sites share",
    ]


def test_the_header_is_bold_and_left_out_if_it_has_no_words():
    assert [str(line.style) for line in lay_out(ROWS, columns=80)] == ["bold", "", ""]
    assert lines([("", ""), ("frozen", "0")], 80, left=2) == ["frozen  0"]


CELL = st.one_of(
    st.integers(0, 10**12).map("{:,}".format),
    st.floats(0.001, 1e9).map("{:.3g}".format),
    st.lists(st.integers(1, 99999), min_size=2, max_size=3).map(lambda sizes: " x ".join(map(str, sizes))),
)


@given(st.data(), st.integers(60, 200))
def test_every_number_of_a_table_is_whole_in_one_line(data, columns):
    wide = data.draw(st.integers(2, 14))
    body = data.draw(st.lists(st.lists(CELL, min_size=wide, max_size=wide), max_size=6))
    left = data.draw(st.integers(1, wide - 1))
    rows = [[f"column {number}" for number in range(wide)], *body]
    printed = lines(rows, columns, left)
    assert max(map(columns_of, printed)) <= columns
    words = "  ".join(printed)
    for row in body:
        for cell in row:
            assert f" {cell} " in f" {words} "
