"""What the command prints on."""

import json

import pytest

from tnadapt._command.terminal import output, print_json, print_lines, print_table

ROWS = [("name", "kind", "trains"), ("lora", "q", "8"), ("lotr", "up", "1,024")]


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
