"""Tables as text: aligned columns, or Markdown."""

from collections.abc import Sequence

__all__: list[str] = []

Row = Sequence[str]


def align(rows: Sequence[Row], *, indent: str = "  ") -> list[str]:
    """Return one line per row. Every column but the last is as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [indent + "  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() for row in rows]


def to_markdown(rows: Sequence[Row], *, numbers: int = 1) -> str:
    """Return a Markdown table whose first row is the header. All columns but the first `numbers` are right-aligned."""
    head, *body = rows
    rule = ["---"] * numbers + ["---:"] * (len(head) - numbers)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))
