"""What the command prints on."""

import json
import os

import pytest

from tnadapt._command.terminal import (
    UNLIMITED,
    is_ascii_only,
    output,
    plain,
    print_diagram,
    print_json,
    print_lines,
    print_table,
)

ROWS = [("name", "kind", "trains"), ("lora", "q", "8"), ("lotr", "up", "1,024")]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    for name in ("COLUMNS", "LC_ALL", "LC_CTYPE", "LANG", "PYTHONIOENCODING"):
        monkeypatch.delenv(name, raising=False)


def printed(capsys):
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("data", [{"name": "lotr", "rank": [1, 2], "none": None}, [], {}])
def test_json_is_whole_and_the_status_is_0(data, capsys):
    assert print_json(data) == 0
    assert json.loads(capsys.readouterr().out) == data


def test_lines_are_printed_as_they_are(capsys):
    lines = ["[bold]no markup[/bold]", "x" * 500, "", "  12 'text' ends in a bracket ["]
    print_lines(output(), *lines)
    assert capsys.readouterr().out.splitlines() == lines


def test_a_word_between_colons_is_printed_as_it_is(capsys):
    print_lines(output(), ":key:")
    assert printed(capsys) == [":key:"]


@pytest.mark.parametrize(
    ("left", "lines"),
    [
        (1, ["name  kind  trains", "lora     q       8", "lotr    up   1,024"]),
        (2, ["name  kind  trains", "lora  q          8", "lotr  up     1,024"]),
        (3, ["name  kind  trains", "lora  q     8", "lotr  up    1,024"]),
    ],
)
def test_the_columns_of_a_table_stand_to_the_right_but_the_first_ones(left, lines, capsys):
    print_table(output(), ROWS, left=left)
    assert printed(capsys) == lines


def test_one_column_of_a_table_stands_to_the_left_unless_told(capsys):
    print_table(output(), ROWS)
    print_table(output(), ROWS, left=1)
    lines = printed(capsys)
    assert lines[:3] == lines[3:]


def test_a_table_of_150_columns_is_not_broken_where_the_output_is_no_terminal(capsys):
    print_table(output(), [("name", "about"), ("x" * 70, "y" * 78)])
    assert printed(capsys)[1:] == ["x" * 70 + "  " + "y" * 78]


def test_a_table_without_rows_is_its_head(capsys):
    print_table(output(), ROWS[:1])
    assert printed(capsys) == ["name  kind  trains"]


def test_the_width_is_that_of_the_terminal_or_of_the_variable(monkeypatch):
    assert output().width == UNLIMITED
    monkeypatch.setenv("COLUMNS", "63")
    assert output().width == 63
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda *descriptor: os.terminal_size((71, 20)))
    assert output().width == 71


def test_a_line_that_is_too_wide_goes_on_below(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    print_lines(output(), "  trains 34,320 = in*r, summed", "", "one: two three four five", hang=4)
    assert printed(capsys) == ["  trains 34,320 =", "      in*r, summed", "", "one: two three four", "    five"]


def test_a_table_without_room_is_turned(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "17")
    print_table(output(), ROWS[:2])
    assert printed(capsys) == ["name    lora", "kind       q", "trains     8"]


def test_a_diagram_without_room_says_how_much_it_needs(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    print_diagram(output(), "●──●")
    print_diagram(output(), "\n".join(["lotr", "─" * 21]))
    drawn, *told = printed(capsys)
    assert drawn == "●──●"
    assert " ".join(line.strip() for line in told).startswith("The diagram takes 21 columns, more than the 20 of this")


@pytest.mark.parametrize(
    ("encoding", "locale", "asked", "is_ascii"),
    [
        ("utf-8", "en_US.UTF-8", "", False),
        ("utf-8", "", "", False),
        (None, "", "", False),
        ("cp1252", "", "", True),
        ("ascii", "", "", True),
        ("no such encoding", "", "", True),
        ("utf-8", "C", "", True),
        ("utf-8", "POSIX", "", True),
        ("utf-8", "C.UTF-8", "", False),
        ("utf-8", "C", "utf-8", False),
    ],
)
def test_a_stream_is_plain_by_its_encoding_or_its_locale(encoding, locale, asked, is_ascii, monkeypatch):
    monkeypatch.setenv("LC_ALL", locale)
    monkeypatch.setenv("LANG", "C" if locale else "")  # LC_ALL comes first
    monkeypatch.setenv("PYTHONIOENCODING", asked)
    assert is_ascii_only(encoding) is is_ascii


def test_letters_that_a_stream_lacks_become_escapes(monkeypatch):
    text = "é中 ● ≤ \udcff"
    assert plain(text, "utf-8") == "é中 ● ≤ \\udcff"
    assert plain(text, "cp1252") == "é\\u4e2d o <= \\udcff"
    assert plain(text, "ascii") == "\\xe9\\u4e2d o <= \\udcff"
    monkeypatch.setenv("LC_ALL", "C")
    assert plain(text, "utf-8") == "\\xe9\\u4e2d o <= \\udcff"
