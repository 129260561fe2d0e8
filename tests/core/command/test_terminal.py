"""What the command prints on."""

import json

from tnadapt._command.terminal import output, print_json, print_lines, table_of


def test_json_is_whole_and_the_status_is_0(capsys):
    data = {"name": "lotr", "rank": [1, 2], "none": None}
    assert print_json(data) == 0
    assert json.loads(capsys.readouterr().out) == data


def test_lines_are_printed_as_they_are(capsys):
    lines = ["[bold]no markup[/bold]", "x" * 500, "ends in a bracket ["]
    print_lines(output(), *lines)
    assert capsys.readouterr().out.splitlines() == lines


def test_a_table_has_its_numbers_on_the_right(capsys):
    output().print(table_of([("name", "trains"), ("lora", "8"), ("lotr", "1,024")]))
    head, *rows = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert head.split() == ["name", "trains"]
    assert [row.split() for row in rows] == [["lora", "8"], ["lotr", "1,024"]]
    assert len({len(line) for line in (head, *rows)}) == 1
