"""Turn a network into boxes and strokes: its factors, modes and legs become cells, which the layout places."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tnadapt._diagram.layout import Cell, Key, Layout, Link, Point, Stack, level
from tnadapt._diagram.subject import Subject

__all__: list[str] = []

SMALL, PLAIN = 12.0, 14.0  # font sizes: of labels, and of the names of factors
LINE = SMALL + 4.0
NODE = 30.0  # height of a factor with one edge per side
PORT = 18.0  # distance between two edges on one side of a factor
LEG = 14.0  # length of the leg of a site mode
STEM, BELOW = 16.0, 26.0  # distance from a dot to the vectors above it, and to those below it
DOT = 4.0  # radius of a dot
MARK = 16.0  # width reserved for the mark of a cut
BRACKET = 10.0
SPACE = 10.0


@dataclass(frozen=True)
class Box:
    """A placed node, dot or text, given by its upper left corner. The boxes of a picture do not overlap.

    `kind` is one of factor, dot, mode, end, site, axis, key (of the legend), note and title. `of` is the factor or the
    mode that the box belongs to.
    """

    kind: str
    text: str
    x: float
    y: float
    width: float
    height: float
    of: str = ""
    anchor: str = "middle"
    is_frozen: bool = False
    is_shared: bool = False
    is_cut: bool = False

    def moved(self, right: float, down: float) -> "Box":
        """Return a copy, shifted."""
        return replace(self, x=self.x + right, y=self.y + down)


@dataclass(frozen=True)
class Stroke:
    """A line of cubic pieces: a start, then three points per piece.

    `kind` is one of mode, site, cut and axis. `of` is its mode (all modes, for an axis); `ends` are what it joins.
    """

    kind: str
    of: str
    points: tuple[Point, ...]
    ends: tuple[str, ...] = ()
    is_cut: bool = False

    def moved(self, right: float, down: float) -> "Stroke":
        """Return a copy, shifted."""
        return replace(self, points=tuple((x + right, y + down) for x, y in self.points))


def text_width(text: str, size: float) -> float:
    """Return a generous estimate of the width of a text in a sans-serif font, in pixels."""
    wide = {"W": 1.05, "F": 1.05}
    return size * sum(
        wide.get(unicodedata.east_asian_width(letter), 0.76 if letter.isupper() or letter in "mw" else 0.62)
        for letter in text
    )


def _cells(subject: Subject) -> tuple[dict[Key, Cell], list[tuple[Link, str]]]:
    columns, last = subject.columns, max(subject.columns.values(), default=0)
    layers: dict[Key, int] = {("factor", name): 2 * column for name, column in columns.items()}
    for mode in subject.carriers:
        if mode in subject.outs:
            layers["end", mode] = -2
        elif mode in subject.ins:
            layers["end", mode] = 2 * last + 2
        if subject.is_dot(mode) or ("end", mode) not in layers:
            layers["mode", mode] = _layer_of_mode(subject, mode, last)
    links: list[tuple[Link, str]] = []
    for mode, carriers in subject.carriers.items():
        middle = ("mode", mode) if ("mode", mode) in layers else ("end", mode)
        ends = [("factor", name) for name in carriers if name in columns]
        ends += [("end", mode)] if middle[0] == "mode" and ("end", mode) in layers else []
        links += [((end, middle) if layers[end] < layers[middle] else (middle, end), mode) for end in ends]
    cells = {key: _cell(subject, key, layer, links) for key, layer in layers.items()}
    return cells, links


def _layer_of_mode(subject: Subject, mode: str, last: int) -> int:
    """Return a layer between the carriers of a mode but without any of them; outside them all if the mode is open."""
    held = sorted(2 * subject.columns[name] for name in subject.carriers[mode] if name in subject.columns)
    if mode in subject.outs:
        return held[0] - 1 if held else -1
    if mode in subject.ins:
        return held[-1] + 1 if held else 2 * last + 1
    free = [layer for layer in range(held[0] + 1, held[-1]) if layer not in held] if held else []
    middle = sum(held) / len(held) if held else last
    return min(free, key=lambda layer: abs(layer - middle)) if free else int(middle) + 1


def _cell(subject: Subject, key: Key, layer: int, links: Sequence[tuple[Link, str]]) -> Cell:
    kind, name = key
    sides = [[link for link, _ in links if link[side] == key] for side in (0, 1)]
    if kind == "factor":
        width, above = _node_size(subject, name)
        inset = (width - _node_width(name)) / 2
        return Cell(layer, width, NODE / 2 + above, NODE / 2, inset=inset, spread=PORT)
    text = text_width(subject.label(name), SMALL)
    mark = MARK if name in subject.cut else 0.0
    if kind == "end":
        align = 1.0 if name in subject.outs else 0.0
        width = text + 4 + (0.0 if subject.is_dot(name) else mark)
        return Cell(layer, width, LINE / 2, LINE / 2, inset=width - text - 4, align=align, is_fixed=True)
    if not subject.is_dot(name):
        turns = not sides[0]
        width = text + 2 * SPACE / 2 + mark
        rooms = (LINE, LINE) if turns else (LINE + 4, 8.0)
        return Cell(
            layer,
            width,
            *rooms,
            inset=0.0 if turns else width / 2,
            align=0.0 if turns else 0.5,
            turns=turns,
            leans=True,
        )
    upper, lower = (_row_size(subject, row) for row in _rows(subject, name))
    is_open = name in (*subject.outs, *subject.ins)
    label = 0.0 if is_open else text if not lower[0] else 2 * (text + STEM / 2)
    width = max(upper[0], lower[0], label, 3 * DOT, 5 * DOT + 2 * mark)
    below = BELOW + lower[1] if lower[0] else 12.0 if is_open else 8 + LINE
    return Cell(layer, width, STEM + upper[1] if upper[0] else 12.0, below, inset=width / 2)


def _stacks(subject: Subject, cells: Mapping[Key, Cell]) -> list[Stack]:
    """Return the bonds between two factors of one column. They are vertical if the factors become neighbours."""
    found = []
    for key, cell in cells.items():
        if cell.turns:
            upper, lower = (("factor", name) for name in subject.carriers[key[1]])
            text = text_width(subject.label(key[1]), SMALL)
            found.append(Stack(key, (upper, lower), 2 * (text + SPACE), LINE + SPACE))
    return found


def _rows(subject: Subject, mode: str) -> tuple[list[str], list[str]]:
    """Return the vectors above a dot and those below it, at most one, since the name of the mode is there too."""
    vectors = subject.vectors.get(mode, [])
    return (vectors[:-1], vectors[-1:]) if len(vectors) > 1 else (vectors, [])


def _row_size(subject: Subject, row: Sequence[str]) -> tuple[float, float]:
    sizes = [_node_size(subject, name) for name in row]
    width = sum(width for width, _ in sizes) + SPACE * max(0, len(sizes) - 1)
    return width, NODE + max((above for _, above in sizes), default=0.0)


def _node_width(name: str) -> float:
    return max(NODE, text_width(name, PLAIN) + 16)


def _stubs(subject: Subject, name: str) -> list[str]:
    return [mode for mode in subject.factors[name].modes if mode in subject.over]


def _node_size(subject: Subject, name: str) -> tuple[float, float]:
    """Return the width of a factor with the legs of its site modes, and the height of these legs."""
    stubs = _stubs(subject, name)
    legs = sum(text_width(subject.label(mode), SMALL) for mode in stubs) + SPACE * max(0, len(stubs) - 1)
    return max(_node_width(name), legs), LEG + LINE if stubs else 0.0


class Scene:
    """The whole drawing of a network: `boxes` and `strokes`, from (0, 0) to (`width`, `height`)."""

    def __init__(self, subject: Subject) -> None:
        """Place the cells, then draw their contents."""
        self.subject = subject
        self.boxes: list[Box] = []
        cells, links = _cells(subject)
        layout = Layout(cells, [link for link, _ in links], _stacks(subject, cells))
        self.strokes = [
            Stroke("mode", mode, points, tuple(name for _, name in link), mode in subject.cut)
            for (link, mode), points in zip(links, layout.routes, strict=True)
            if points
        ]
        paint = {"factor": self._factor, "mode": self._mode, "end": self._end}
        for key, cell in layout.cells.items():
            paint[key[0]](key[1], cell, layout.spots[key])
        for (_, mode), (upper, lower) in layout.joined.items():
            x = layout.spots[upper][0] + layout.cells[upper].width / 2
            top = layout.spots[upper][1] + layout.cells[upper].below
            self._stacked(mode, (upper[1], lower[1]), (x, top), layout.spots[lower][1] - layout.cells[lower].above)
        for number in range(len(subject.axes)):
            self._bracket(number)
        self._free_row(layout)
        self._shift()

    def _factor(self, name: str, cell: Cell, spot: Point) -> None:
        half = cell.above if cell.above < cell.below else -cell.below
        self._node(name, (spot[0] + cell.width / 2, spot[1]), half)

    def _node(self, name: str, middle: Point, half: float) -> None:
        """Draw a factor around its middle, and a leg per site mode above it (`half` < 0) or below it (`half` > 0)."""
        subject, (x, y), width, tall = self.subject, middle, _node_width(name), abs(half)
        is_frozen, is_shared = not subject.factors[name].trainable, subject.is_shared(name)
        place, size = (x - width / 2, y - tall), (width, 2 * tall)
        self.boxes.append(Box("factor", name, *place, *size, name, is_frozen=is_frozen, is_shared=is_shared))
        stubs, way = _stubs(subject, name), math.copysign(1.0, half)
        widths = [text_width(subject.label(mode), SMALL) for mode in stubs]
        left = x - (sum(widths) + SPACE * max(0, len(stubs) - 1)) / 2
        for number, (mode, wide) in enumerate(zip(stubs, widths, strict=True)):
            start = (x + (number - (len(stubs) - 1) / 2) * min(12.0, width / (len(stubs) + 1)), y + half)
            end = (left + wide / 2, start[1] + way * LEG)
            self.strokes.append(Stroke("site", mode, line(start, end), (name,)))
            top = end[1] + LINE / 2 * (way - 1)
            self.boxes.append(Box("site", subject.label(mode), left, top, wide, LINE, mode))
            left += wide + SPACE

    def _mode(self, mode: str, cell: Cell, spot: Point) -> None:
        """Draw the name of a bond above its line, or the dot of a hyperedge with its name and its vectors."""
        subject, x, y = self.subject, spot[0] + cell.width / 2, spot[1]
        label, is_cut = subject.label(mode), mode in subject.cut
        text = text_width(label, SMALL)
        if not subject.is_dot(mode):
            left, top = spot[0] + SPACE / 2, y - LINE / 2 if cell.turns else y - LINE - 4
            self.boxes.append(Box("mode", label, left, top, text, LINE, mode, is_cut=is_cut))
            self._mark(mode, (spot[0], y) if cell.turns else (left + text + MARK / 2, y))
            return
        self.boxes.append(Box("dot", "", x - DOT, y - DOT, 2 * DOT, 2 * DOT, mode, is_cut=is_cut))
        rows = _rows(subject, mode)
        if mode not in (*subject.outs, *subject.ins):
            left, top = (x + STEM / 2, y + 5) if rows[1] else (x - text / 2, y + 8)
            self.boxes.append(Box("mode", label, left, top, text, LINE, mode, is_cut=is_cut))
        comes = any(stroke.of == mode and stroke.points[-1] == (x, y) for stroke in self.strokes)
        self._mark(mode, (x + max(DOT + MARK / 2, cell.width / 2 - 6) * (-1 if comes else 1), y))
        for row, stem, half in zip(rows, (-STEM, BELOW), (-NODE / 2, NODE / 2), strict=True):
            left = x - _row_size(subject, row)[0] / 2
            for vector in row:
                wide = _node_size(subject, vector)[0]
                foot = (left + wide / 2, y + stem)
                self._node(vector, (foot[0], foot[1] + half), half)
                self.strokes.append(Stroke("mode", mode, line((x, y), foot), (mode, vector), is_cut))
                left += wide + SPACE

    def _stacked(self, mode: str, ends: tuple[str, str], start: Point, bottom: float) -> None:
        """Draw a bond between two factors, one above the other: a vertical line with its name beside it."""
        label, is_cut, (x, top) = self.subject.label(mode), mode in self.subject.cut, start
        self.strokes.append(Stroke("mode", mode, line(start, (x, bottom)), ends, is_cut))
        place = (x + SPACE, (top + bottom - LINE) / 2)
        self.boxes.append(Box("mode", label, *place, text_width(label, SMALL), LINE, mode, is_cut=is_cut))
        if is_cut:
            middle = (top + bottom) / 2
            self.strokes.append(
                Stroke("cut", mode, line((x - 8, middle + 3), (x + 8, middle - 3)), (mode,), is_cut=True)
            )

    def _end(self, mode: str, cell: Cell, spot: Point) -> None:
        """Draw the name at the far end of an open leg, aligned with its line."""
        label, is_left, is_cut = self.subject.label(mode), mode in self.subject.outs, mode in self.subject.cut
        text = text_width(label, SMALL)
        x = spot[0] if is_left else spot[0] + cell.width - text
        anchor = "end" if is_left else "start"
        self.boxes.append(Box("end", label, x, spot[1] - LINE / 2, text, LINE, mode, anchor, is_cut=is_cut))
        if not self.subject.is_dot(mode):
            self._mark(mode, (x + text + 4 + MARK / 2 if is_left else x - 4 - MARK / 2, spot[1]))

    def _mark(self, mode: str, at: Point) -> None:
        """Draw a short stroke across a mode of the minimum cut."""
        if mode in self.subject.cut:
            points = line((at[0] - 3, at[1] + 8), (at[0] + 3, at[1] - 8))
            self.strokes.append(Stroke("cut", mode, points, (mode,), is_cut=True))

    def _bracket(self, number: int) -> None:
        """Draw a bracket beside the legs of a split axis, with the size of the axis."""
        subject, axis, is_left = self.subject, self.subject.axes[number], number == 0
        ends = [box for box in self.boxes if box.kind == "end" and box.of in axis]
        if len(ends) == 1:
            return
        all_ends = [box for box in self.boxes if box.kind == "end" and (box.of in subject.outs) == is_left]
        near = min(box.x for box in all_ends) - 6 if is_left else max(box.x + box.width for box in all_ends) + 6
        far = near + (-BRACKET if is_left else BRACKET)
        top, bottom = min(box.y for box in ends), max(box.y + box.height for box in ends)
        path = line((near, top), (far, top), (far, bottom), (near, bottom))
        self.strokes.append(Stroke("axis", " ".join(axis), path, axis))
        size = math.prod(subject.sizes.get(mode, 1) for mode in axis)
        text = ("out" if is_left else "in") + (f" = {size:,}" if subject.sizes else "")
        wide = text_width(text, SMALL)
        x = far - 6 - wide if is_left else far + 6
        self.boxes.append(Box("axis", text, x, (top + bottom - LINE) / 2, wide, LINE, " ".join(axis)))

    def _free_row(self, layout: Layout) -> None:
        """Draw, below the network, its scalar factors and the site modes that no factor carries."""
        subject, scalars = self.subject, self.subject.scalars
        carried = {mode for factor in subject.factors.values() for mode in factor.modes}
        idle = {mode: f"{subject.label(mode)} (in no factor)" for mode in subject.over if mode not in carried}
        sizes = [_node_size(subject, name) for name in scalars]
        widths = [width for width, _ in sizes] + [text_width(text, SMALL) for text in idle.values()]
        left = layout.width / 2 - (sum(widths) + 2 * SPACE * (len(widths) - 1)) / 2
        y = layout.bottom + 2 * SPACE + max([LEG, *(above for _, above in sizes)]) + NODE / 2
        for name, wide in zip(scalars, widths, strict=False):
            self._node(name, (left + wide / 2, y), -NODE / 2)
            left += wide + 2 * SPACE
        for (mode, text), wide in zip(idle.items(), widths[len(sizes) :], strict=True):
            foot, top = left + wide / 2, y - LINE / 2
            self.strokes.append(Stroke("site", mode, line((foot, top - LEG), (foot, top))))
            self.boxes.append(Box("site", text, left, top, wide, LINE, mode))
            left += wide + 2 * SPACE

    def _shift(self) -> None:
        """Shift everything so that the upper left corner is (0, 0)."""
        points = [point for stroke in self.strokes for point in stroke.points]
        points += [(box.x, box.y) for box in self.boxes]
        points += [(box.x + box.width, box.y + box.height) for box in self.boxes]
        left, top = (min(point[side] for point in points) for side in (0, 1))
        self.width, self.height = max(x for x, _ in points) - left, max(y for _, y in points) - top
        self.boxes = [box.moved(-left, -top) for box in self.boxes]
        self.strokes = [stroke.moved(-left, -top) for stroke in self.strokes]


def line(*corners: Point) -> tuple[Point, ...]:
    """Return straight pieces from corner to corner."""
    return (corners[0], *(point for start, end in pairwise(corners) for point in level(start, end)))
