"""Draw a network as text: one row per factor, one column per mode, a dot where the factor carries the mode."""

from collections.abc import Sequence
from statistics import fmean

from tnadapt._diagram.subject import Subject
from tnadapt._table import columns_of

__all__: list[str] = []

WIDTH = 100  # columns of a terminal
LONGEST = 24  # columns of a name; longer names are truncated
BETWEEN = 3  # columns between two modes


def score(subject: Subject, columns: int = WIDTH) -> list[str]:
    """Return the lines of the table. Modes that do not fit side by side continue in another table below.

    A line has at most `columns` columns, but for a table of one mode, which may need more.
    """
    places = _places(subject)
    spot = {mode: number for number, (_, mode) in enumerate(places)}
    rows = sorted(
        subject.factors,
        key=lambda name: fmean([spot[mode] for mode in subject.local[name]] or [len(spot)]),
    )
    heads = [_head(subject, name) for name in rows]
    margin = max(map(columns_of, heads)) + BETWEEN
    blocks: list[list[tuple[str, str]]] = [[]]
    for role, mode in places:
        wide = margin + sum(_wide(subject, *place) for place in [*blocks[-1], (role, mode)])
        if wide > columns and blocks[-1]:
            blocks.append([])
        blocks[-1].append((role, mode))
    lines: list[str] = []
    for block in blocks:
        lines += ["", *_block(subject, rows, [_padded(head, margin) for head in heads], block)]
    return lines


def _places(subject: Subject) -> list[tuple[str, str]]:
    """Return every mode with its role, in the order out, bonds from left to right, in, site."""
    outer = (*subject.outs, *subject.ins)
    means = {
        mode: fmean([subject.columns[name] for name in carriers if name in subject.columns] or [0])
        for mode, carriers in subject.carriers.items()
        if mode not in outer
    }
    roles = {"out": subject.outs, "bond": sorted(means, key=means.__getitem__), "in": subject.ins, "site": subject.over}
    return [(role, mode) for role, modes in roles.items() for mode in modes]


def _head(subject: Subject, name: str) -> str:
    """Return the start of a row: the mark of a frozen factor, its name, and whether it is shared."""
    mark = " " if subject.factors[name].trainable else "▒"
    return f"{mark} {_short(name)}" + ("  shared" if subject.is_shared(name) else "")


def _block(subject: Subject, rows: Sequence[str], heads: Sequence[str], block: Sequence[tuple[str, str]]) -> list[str]:
    """Return the lines of one table: roles, names, sizes, then the factors."""
    margin = " " * columns_of(heads[0])
    roles, names, sizes, centres = "", "", "", list[int]()
    for number, (role, mode) in enumerate(block):
        wide, left = _wide(subject, role, mode), columns_of(names)
        if number == 0 or block[number - 1][0] != role:
            roles = _padded(roles, left) + role
        names += _padded(_short(mode), wide)
        sizes += _padded(f"{subject.sizes[mode]:,}" if mode in subject.sizes else "", wide)
        centres.append(left + (columns_of(_short(mode)) - 1) // 2)
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
    return max(columns_of(_short(mode)), len(size), len(role)) + BETWEEN


def _padded(text: str, columns: int) -> str:
    return text + " " * (columns - columns_of(text))


def _short(text: str) -> str:
    """Return a name, truncated if it is too long."""
    if columns_of(text) <= LONGEST:
        return text
    while columns_of(text) > LONGEST - 1:
        text = text[:-1]
    return text + "…"
