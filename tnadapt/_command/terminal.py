"""What the command prints on: tables and plain lines on the output, progress on the error output."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

__all__: list[str] = []

WIDE = 160  # columns where the output is no terminal


def output() -> Console:
    """The standard output; lines are never broken where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else WIDE, soft_wrap=not sys.stdout.isatty())


def print_lines(console: Console, *lines: str) -> None:
    """Lines as they are: no word in them is markup."""
    console.print(*lines, sep="\n", markup=False, highlight=False)


def print_json(data: Any) -> int:
    """Data for machines, and status 0."""
    print(json.dumps(data, indent=1))
    return 0


def table_of(rows: Sequence[Sequence[str]], *, left: int = 1) -> Table:
    """A table whose columns but the first `left` stand to the right; the first row is its head."""
    head, *body = rows
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place < left else "right", overflow="fold")
    for row in body:
        table.add_row(*row)
    return table
