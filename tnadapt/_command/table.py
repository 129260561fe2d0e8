"""Lay out a table in the columns of a terminal: as a whole, turned, in parts, or row by row. No cell is cut."""

from collections.abc import Sequence

from rich.text import Text

from tnadapt._table import Row, columns_of, wrap

__all__: list[str] = []

GAP = 2  # columns between two cells
PROSE = 24  # fewest columns for a text that is broken into lines
HEAD = "bold"

Rows = Sequence[Row]


def lay_out(rows: Rows, *, left: int = 1, columns: int) -> list[Text]:
    """Return the lines of a table whose first row is the header.

    The first `left` columns are left-aligned, the others right-aligned. A table that is too wide is turned, so that
    each row is a column, if it has fewer rows than columns; otherwise the columns continue in further tables below,
    each with the first column again. Text in the last column is broken into lines if that one is left-aligned.
    """
    if _width(rows) <= columns:
        return _aligned(rows, left)
    if left == len(rows[0]):
        room = columns - _width([row[:-1] for row in rows]) - GAP
        return _with_prose(rows, room) if room >= PROSE else _one_by_one(rows, columns)
    turned = [list(cells) for cells in zip(*rows, strict=True)]
    if len(rows) <= len(turned) and _width(turned) <= columns:
        return _aligned(turned, 1)
    parts = _parts(rows, columns)
    return _stacked(parts, left) if parts else _one_by_one(rows, columns)


def _width(rows: Rows) -> int:
    widths = _widths(rows)
    return sum(widths) + GAP * (len(widths) - 1)


def _widths(rows: Rows) -> list[int]:
    return [max(map(columns_of, cells)) for cells in zip(*rows, strict=True)]


def _aligned(rows: Rows, left: int) -> list[Text]:
    """Return one line per row, the header in bold. A header without words is left out."""
    widths = _widths(rows)
    lines = []
    for row in rows:
        cells = [(cell, " " * (wide - columns_of(cell))) for cell, wide in zip(row, widths, strict=True)]
        padded = [cell + space if at < left else space + cell for at, (cell, space) in enumerate(cells)]
        lines.append((" " * GAP).join(padded).rstrip())
    return [Text(line, HEAD if number == 0 else "") for number, line in enumerate(lines) if number or line]


def _parts(rows: Rows, columns: int) -> list[Rows]:
    """Return the table as several, each with the first column. Return none if a column is too wide beside it."""
    widths = _widths(rows)
    if not rows or len(widths) == 1 or widths[0] + GAP + max(widths[1:]) > columns:
        return []
    chosen: list[list[int]] = [[0]]
    for at in range(1, len(widths)):
        if sum(widths[one] + GAP for one in chosen[-1]) + widths[at] > columns:
            chosen.append([0])
        chosen[-1].append(at)
    return [[[row[at] for at in some] for row in rows] for some in chosen]


def _stacked(parts: Sequence[Rows], left: int) -> list[Text]:
    """Return tables one below the other, with an empty line between two."""
    lines: list[Text] = []
    done = 1  # columns of the whole table that have been laid out, the first among them
    for rows in parts:
        lines += [Text(""), *_aligned(rows, 1 + max(left - done, 0))]
        done += len(rows[0]) - 1
    return lines[1:]


def _with_prose(rows: Rows, room: int) -> list[Text]:
    """Return a table whose last cells are texts, broken into lines of `room` columns."""
    made: list[Row] = []
    for row in rows:
        first, *others = wrap(row[-1], room)
        made.append([*row[:-1], first])
        made += [[*("" for _ in row[:-1]), line] for line in others]
    return _aligned(made, len(rows[0]))


def _one_by_one(rows: Rows, columns: int) -> list[Text]:
    """Return each row as a heading, its first cell, and below it a line with a name for each other cell."""
    head, *body = rows
    wide = max([0, *map(columns_of, head[1:])]) + GAP
    lines: list[Text] = []
    for row in body:
        lines += [Text(line, HEAD) for line in wrap(row[0], columns)]
        for name, cell in zip(head[1:], row[1:], strict=True):
            start = " " * GAP + name + " " * (wide - columns_of(name))
            lines += map(Text, wrap(start + cell, columns, hang=" " * GAP * 2))
    return lines
