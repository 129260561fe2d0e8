"""A network as text: a row for every factor, a column for every mode, a dot where the factor carries the mode."""

import unicodedata
from collections.abc import Sequence
from statistics import fmean

from tnadapt._diagram.subject import Subject

__all__: list[str] = []

WIDTH = 100  # columns of a terminal
LONGEST = 24  # of a name, before it is cut short
BETWEEN = 3


def score(subject: Subject) -> list[str]:
    """The lines of the table; where the modes do not fit side by side, tables one below the other."""
    places = _places(subject)
    spot = {mode: number for number, (_, mode) in enumerate(places)}
    rows = sorted(
        subject.factors,
        key=lambda name: fmean([spot[mode] for mode in subject.local[name]] or [len(spot)]),
    )
    heads = [_head(subject, name) for name in rows]
    margin = max(map(_columns, heads)) + BETWEEN
    blocks: list[list[tuple[str, str]]] = [[]]
    for role, mode in places:
        if margin + sum(_wide(subject, *place) for place in [*blocks[-1], (role, mode)]) > WIDTH:
            blocks.append([])
        blocks[-1].append((role, mode))
    lines: list[str] = []
    for block in blocks:
        lines += ["", *_block(subject, rows, [_padded(head, margin) for head in heads], block)]
    return lines


def _places(subject: Subject) -> list[tuple[str, str]]:
    """Every mode with its role: out, bonds from left to right, in, site."""
    outer = (*subject.outs, *subject.ins)
    means = {
        mode: fmean([subject.columns[name] for name in carriers if name in subject.columns] or [0])
        for mode, carriers in subject.carriers.items()
        if mode not in outer
    }
    roles = {"out": subject.outs, "bond": sorted(means, key=means.__getitem__), "in": subject.ins, "site": subject.over}
    return [(role, mode) for role, modes in roles.items() for mode in modes]


def _head(subject: Subject, name: str) -> str:
    """A factor's name, behind its mark, and before what sets it apart."""
    mark = " " if subject.factors[name].trainable else "▒"
    return f"{mark} {_short(name)}" + ("  shared" if subject.is_shared(name) else "")


def _block(subject: Subject, rows: Sequence[str], heads: Sequence[str], block: Sequence[tuple[str, str]]) -> list[str]:
    """One table: roles, names, sizes, then the factors."""
    margin = " " * _columns(heads[0])
    roles, names, sizes, centres = "", "", "", list[int]()
    for number, (role, mode) in enumerate(block):
        wide, left = _wide(subject, role, mode), _columns(names)
        if number == 0 or block[number - 1][0] != role:
            roles = _padded(roles, left) + role
        names += _padded(_short(mode), wide)
        sizes += _padded(f"{subject.sizes[mode]:,}" if mode in subject.sizes else "", wide)
        centres.append(left + (_columns(_short(mode)) - 1) // 2)
    lines = [margin + roles, margin + names, *([margin + sizes] if subject.sizes else [])]
    held = [[mode in subject.factors[name].modes for _, mode in block] for name in rows]
    for row, head in enumerate(heads):
        letters = [" "] * (centres[-1] + 1)
        mine = [centre for centre, holds in zip(centres, held[row], strict=True) if holds]
        for at in range(min(mine, default=0), max(mine, default=-1) + 1):
            letters[at] = "─"
        for column, centre in enumerate(centres):
            above, below = (any(held[at][column] for at in part) for part in (range(row), range(row, len(rows))))
            passes = above and below and not held[row][column]
            if held[row][column]:
                letters[centre] = "●"
            elif passes:
                letters[centre] = "┼" if letters[centre] == "─" else "│"
        lines.append(head + "".join(letters))
    return [line.rstrip() for line in lines]


def _wide(subject: Subject, role: str, mode: str) -> int:
    size = f"{subject.sizes[mode]:,}" if mode in subject.sizes else ""
    return max(_columns(_short(mode)), len(size), len(role)) + BETWEEN


def _columns(text: str) -> int:
    """Columns of a terminal that a text takes: two for a wide letter, none for an accent that joins one."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _padded(text: str, columns: int) -> str:
    return text + " " * (columns - _columns(text))


def _short(text: str) -> str:
    """A name, cut where it is too long."""
    if _columns(text) <= LONGEST:
        return text
    while _columns(text) > LONGEST - 1:
        text = text[:-1]
    return text + "…"
