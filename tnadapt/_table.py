"""Rows of words as a table: aligned text, or Markdown."""

from collections.abc import Sequence

__all__: list[str] = []

Row = Sequence[str]


def align(rows: Sequence[Row], *, indent: str = "  ") -> list[str]:
    """One line a row, every column but the last as wide as its widest word."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [indent + "  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() for row in rows]


def to_markdown(rows: Sequence[Row], *, numbers: int = 1) -> str:
    """The first row as head; all columns but the first `numbers` stand to the right."""
    head, *body = rows
    rule = ["---"] * numbers + ["---:"] * (len(head) - numbers)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))
