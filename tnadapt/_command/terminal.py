"""Print tables, plain lines and JSON on standard output."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

__all__: list[str] = []

WIDE = 160  # columns if the output is not a terminal


def output() -> Console:
    """Return the console of standard output. It never wraps lines unless it is a terminal."""
    return Console(width=None if sys.stdout.isatty() else WIDE, soft_wrap=not sys.stdout.isatty())


def print_lines(console: Console, *lines: str) -> None:
    """Print lines unchanged, without interpreting any text in them as markup."""
    console.print(*lines, sep="\n", markup=False, highlight=False, emoji=False)


def print_json(data: Any) -> int:
    """Print data as JSON and return exit status 0."""
    print(json.dumps(data, indent=1))
    return 0


def table_of(rows: Sequence[Sequence[str]], *, left: int = 1) -> Table:
    """Return a table with its first row as header. The first `left` columns are left-aligned, others right-aligned."""
    head, *body = rows
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place < left else "right", overflow="fold")
    for row in body:
        table.add_row(*row)
    return table
