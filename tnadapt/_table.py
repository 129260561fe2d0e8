"""Tables and lines as text: aligned columns, Markdown, and lines that are broken between words."""

import re
import unicodedata
from collections.abc import Sequence

__all__: list[str] = []

Row = Sequence[str]
GLUED = re.compile(r"(?<=[\d)]) x (?=[\d(])|(?<==) (?=[\d(])")  # 4 x 8, <= 8: read as one word
AFTER = ("/\\.,:", "_*-")  # where a word is broken that is longer than a line: the first of these if possible
HELD = "\N{NO-BREAK SPACE}"


def columns_of(text: str) -> int:
    """Return the terminal columns that a text takes: two per wide letter, none per combining accent."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def align(rows: Sequence[Row], *, indent: str = "  ") -> list[str]:
    """Return one line per row. Every column but the last is as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [indent + "  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() for row in rows]


def to_markdown(rows: Sequence[Row], *, numbers: int = 1) -> str:
    """Return a Markdown table whose first row is the header. All columns but the first `numbers` are right-aligned."""
    head, *body = rows
    rule = ["---"] * numbers + ["---:"] * (len(head) - numbers)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def wrap(text: str, columns: int, *, hang: str = "") -> list[str]:
    """Return one line of text as several of at most `columns` columns, each but the first begun with `hang`.

    It is broken at spaces. A word that is longer than a line is broken after one of / _ * . , : - or between two
    letters, but never inside a number: a longer number stays whole.
    """
    rest = GLUED.sub(lambda found: found[0].replace(" ", HELD), text)
    lines = []
    kept = len(rest) - len(rest.lstrip(" "))  # a break there would leave an empty line
    while columns_of(rest) > columns and (at := _break(rest, columns, kept)):
        lines.append(rest[:at].rstrip(" "))
        rest = hang + rest[at:].lstrip(" ")
        kept = len(hang)
    return [line.replace(HELD, " ") for line in [*lines, rest]]


def _break(text: str, columns: int, kept: int) -> int:
    """Return where to break a line that is too long; 0 if nowhere."""
    most = next(at for at in range(len(text), -1, -1) if columns_of(text[:at]) <= columns)
    if (at := text.rfind(" ", kept + 1, most + 1)) > 0 and text[at:].strip(" "):
        return at
    word = range(most, kept, -1)
    for signs in AFTER:
        if found := next((at for at in word if text[at - 1] in signs and not _is_inside_number(text, at)), 0):
            return found
    if found := next((at for at in word if text[at - 1].isalpha() and text[at : at + 1].isalpha()), 0):
        return found
    later = text.find(" ", max(most, kept + 1))
    return later if later > 0 and text[later:].strip(" ") else 0


def _is_inside_number(text: str, at: int) -> bool:
    """Return whether a break after a sign would lie in a number: 1,024 or 1e-05 or -2."""
    before, sign, after = text[at - 2 : at - 1], text[at - 1], text[at : at + 1]
    return after.isdigit() and (before.isdigit() or sign == "-")
