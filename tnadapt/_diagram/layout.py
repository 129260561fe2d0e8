"""Lay out a layered diagram: layers from left to right, cells that do not overlap, edges that avoid the cells."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from statistics import fmean, median, median_low

__all__: list[str] = []

Key = tuple[str, str]
Point = tuple[float, float]
Link = tuple[Key, Key]  # the left end first
Layers = list[list[Key]]

ROOM = 14.0  # gap between two cells of one layer
NEAR, FAR = 26.0, 66.0  # gap between two layers: the steeper the edges, the wider
SWEEPS, SOFT = 60, 40  # passes over the heights; after the soft ones, cells align with a neighbour
STIFF = 8.0  # weight of a bend of a long edge, relative to a cell


@dataclass(frozen=True)
class Cell:
    """A rectangle to place: a line at which its edges end, with space `above` and `below` that line.

    The two ends of an edge must have different `layer`s. `inset` is the distance from a side of the cell to the ends
    of its edges, inside the cell; `spread` is the distance between two ends on one side (the cell grows with them);
    `align` is the position in a wider layer, from 0 (left) to 1 (right). A layer of fixed cells keeps its order.
    """

    layer: int
    width: float
    above: float
    below: float
    inset: float = 0.0
    spread: float = 0.0
    align: float = 0.5
    is_fixed: bool = False
    turns: bool = False  # its edges come from one side and end vertically
    leans: bool = False  # it aligns with one neighbour instead of lying between two


@dataclass(frozen=True)
class Stack:
    """Two cells of one layer, joined through `middle`, or directly if they come to lie one above the other.

    `width` and `height` are the size of the space between them.
    """

    middle: Key
    ends: tuple[Key, Key]
    width: float
    height: float


BEND = Cell(layer=0, width=0.0, above=2.0, below=2.0, leans=True)  # where a long edge crosses a layer


class Layout:
    """The positions of cells, and the routes of edges as a start and three points per cubic piece.

    The layers are ordered first, for few crossings; then heights are chosen that keep edges straight; then widths. An
    edge is horizontal inside the layers and bends only between them, so it touches no cell but those at its ends.

    Attributes:
        cells: the placed cells, enlarged where many edges end.
        joined: middle -> (upper, lower) for every stack that is joined directly; its middle is not placed.
        spots: the left end and the line of each cell.
        routes: one route per link, in the given order; without points if a stack is joined directly.
    """

    def __init__(self, cells: Mapping[Key, Cell], links: Sequence[Link], stacks: Sequence[Stack]) -> None:
        """Args: the cells, their edges, and the pairs of cells to join directly if they become neighbours."""
        numbers = {layer: number for number, layer in enumerate(sorted({cell.layer for cell in cells.values()}))}
        self.cells = dict(cells)
        self.layers: Layers = [[] for _ in numbers]
        for key, cell in cells.items():
            self.layers[numbers[cell.layer]].append(key)
        self.chains = [_chain(link, number, cells, numbers, self.layers) for number, link in enumerate(links)]
        fixed = [any(key in cells and cells[key].is_fixed for key in layer) for layer in self.layers]
        self.layers = _ordered(self.layers, _pieces(self.chains), fixed)
        self._join(stacks)
        self.pieces = _pieces(self.chains)
        self._spread_ends()
        self.heights = self._heights()
        self._widths()
        self.routes = [self._route(chain) for chain in self.chains]
        self.bottom = max(self.heights[key] + cell.below for key, cell in self.cells.items())

    def _join(self, stacks: Sequence[Stack]) -> None:
        """Remove the middle of each stack whose two cells are neighbours.

        The lower cell is turned upside down, so that its upper side is free, unless another cell is joined there.
        """
        spot = {key: (number, at) for number, layer in enumerate(self.layers) for at, key in enumerate(layer)}
        self._room: dict[Key, Stack] = {}
        self.joined: dict[Key, tuple[Key, Key]] = {}
        for stack in stacks:
            upper, lower = sorted(stack.ends, key=spot.__getitem__)
            top, bottom = self.cells[upper], self.cells[lower]
            is_free = bottom.above == bottom.below or lower not in self._room
            is_near = spot[lower][1] - spot[upper][1] == 1
            if is_near and is_free and upper not in self._room and top.below <= top.above:
                self._room[upper] = stack
                self.cells[lower] = replace(bottom, above=bottom.below, below=bottom.above)
                self.joined[stack.middle] = (upper, lower)
        self.cells = {key: cell for key, cell in self.cells.items() if key not in self.joined}
        left = [[key for key in layer if key in self.cells] for layer in self.layers]  # without bends
        emptied = {key for layer, cells in zip(self.layers, left, strict=True) if not cells for key in layer}
        gone = {*emptied, *self.joined}
        self.layers = [kept for layer in self.layers if (kept := [key for key in layer if key not in gone])]
        self.chains = [
            () if set(chain) & self.joined.keys() else tuple(key for key in chain if key not in gone)
            for chain in self.chains
        ]

    def _spread_ends(self) -> None:
        """Find how far below its cell's line each edge ends: spread evenly, in the order of the other ends."""
        spot = {key: number for layer in self.layers for number, key in enumerate(layer)}
        self.ports: dict[tuple[Key, Link], float] = {}
        for key in spot:
            cell = self.cells.get(key, BEND)
            for side in (0, 1):
                mine = [(spot[piece[side]], piece) for piece in self.pieces if piece[1 - side] == key]
                more = (len(mine) - 1) / 2 * cell.spread
                self.ports |= {
                    (key, piece): number * cell.spread - more for number, (_, piece) in enumerate(sorted(mine))
                }
            more = max([0.0, *(self.ports[key, piece] for piece in self.pieces if key in piece)])
            if key in self.cells:
                self.cells[key] = replace(cell, above=cell.above + more, below=cell.below + more)

    def _heights(self) -> dict[Key, float]:
        """Move each cell towards the mean, later towards the median of its neighbours, in repeated sweeps."""
        pulls: dict[Key, list[tuple[Key, float]]] = {key: [] for layer in self.layers for key in layer}
        for piece in self.pieces:
            left, right = piece
            step = self.ports[left, piece] - self.ports[right, piece]
            pulls[left].append((right, -step))
            pulls[right].append((left, step))
        heights: dict[Key, float] = {}
        for layer in self.layers:
            heights |= self._settled(layer, [0.0] * len(layer))
        for sweep in range(SWEEPS):
            for layer in self.layers if sweep % 2 == 0 else reversed(self.layers):
                near = [[heights[other] + step for other, step in pulls[key]] or [heights[key]] for key in layer]
                wished = [_wish(self.cells.get(key, BEND), at, sweep) for key, at in zip(layer, near, strict=True)]
                heights |= self._settled(layer, wished)
        return {key: float(round(height)) for key, height in heights.items()}

    def _settled(self, layer: Sequence[Key], wished: Sequence[float]) -> dict[Key, float]:
        """Return the heights closest to the wished ones, in least squares, that keep the layer's order and gaps.

        With the gaps subtracted this is isotonic regression, solved by pooling adjacent violators.
        """
        offsets = [0.0]
        for upper, lower in pairwise(layer):
            room = self._room[upper].height if upper in self._room else ROOM
            offsets.append(offsets[-1] + self.cells.get(upper, BEND).below + room + self.cells.get(lower, BEND).above)
        pools: list[tuple[float, float, int]] = []  # weight, mean, count
        for key, wish, offset in zip(layer, wished, offsets, strict=True):
            pool = (1.0 if key in self.cells else STIFF, wish - offset, 1)
            while pools and pools[-1][1] > pool[1]:
                weight, mean, count = pools.pop()
                total = weight + pool[0]
                pool = (total, (weight * mean + pool[0] * pool[1]) / total, count + pool[2])
            pools.append(pool)
        means = [mean for _, mean, count in pools for _ in range(count)]
        return {key: mean + offset for key, mean, offset in zip(layer, means, offsets, strict=True)}

    def _widths(self) -> None:
        """Find where each layer, and each cell in it, begins and ends."""
        self._layer_of = {key: number for number, layer in enumerate(self.layers) for key in layer}
        steep = [0.0] * len(self.layers)
        for piece in self.pieces:
            start, end = (self.heights[key] + self.ports[key, piece] for key in piece)
            steep[self._layer_of[piece[0]]] = max(steep[self._layer_of[piece[0]]], abs(end - start))
        self._spans: list[tuple[float, float]] = []
        left = 0.0
        for layer, rise in zip(self.layers, steep, strict=True):
            rooms = [self._room[key].width for key in layer if key in self._room]
            right = left + max([*rooms, *(self.cells.get(key, BEND).width for key in layer)])
            self._spans.append((left, right))
            left = right + min(NEAR + 0.4 * rise, FAR)
        self.width = self._spans[-1][1]
        self.spots: dict[Key, Point] = {}
        for key, cell in self.cells.items():
            left, right = self._spans[self._layer_of[key]]
            self.spots[key] = (left + cell.align * (right - left - cell.width), self.heights[key])

    def _route(self, chain: tuple[Key, ...]) -> tuple[Point, ...]:
        """Return the route of an edge: horizontal at both ends and inside layers, bent in the gaps between layers."""
        path: list[Point] = []
        for piece in pairwise(chain):
            start, end = piece
            out, into = (self.heights[key] + self.ports[key, piece] for key in piece)
            near, far = self._spans[self._layer_of[start]][1], self._spans[self._layer_of[end]][0]
            if start == chain[0]:
                path.append((self.spots[start][0] + self.cells[start].width - self.cells[start].inset, out))
            path += level(path[-1], (near, out))
            if end != chain[-1]:
                path += bent(path[-1], (far, into))
            elif self.cells[end].turns:
                path += [(far, out), (far, (out + into) / 2), (far, into)]
            else:
                path += bent(path[-1], (far, into))
                path += level(path[-1], (self.spots[end][0] + self.cells[end].inset, into))
        return tuple(path)


def _wish(cell: Cell, near: Sequence[float], sweep: int) -> float:
    """Return the height that suits a cell best: between its neighbours, or level with one of them."""
    if sweep >= SOFT and cell.leans:
        return median_low(near)
    return median(near) if sweep >= SOFT and cell.spread else fmean(near)


def _pieces(chains: Sequence[tuple[Key, ...]]) -> list[Link]:
    return [piece for chain in chains for piece in pairwise(chain)]


def _chain(
    link: Link, number: int, cells: Mapping[Key, Cell], numbers: Mapping[int, int], layers: Layers
) -> tuple[Key, ...]:
    """Return the ends of an edge with a bend in every layer between them. Add the bends to their layers."""
    left, right = link
    passed = range(numbers[cells[left].layer] + 1, numbers[cells[right].layer])
    bends = tuple((f"bend {number}", str(layer)) for layer in passed)
    for layer, bend in zip(passed, bends, strict=True):
        layers[layer].append(bend)
    return (left, *bends, right)


def _ordered(layers: Layers, pieces: Sequence[Link], fixed: Sequence[bool]) -> Layers:
    """Order each layer by barycentres in alternating sweeps, keep the best, then swap neighbours while that helps."""
    near: tuple[dict[Key, list[Key]], ...] = ({}, {})  # to the left, to the right
    for left, right in pieces:
        near[0].setdefault(right, []).append(left)
        near[1].setdefault(left, []).append(right)
    best, least = layers, _crossings(layers, pieces)
    for sweep in range(8):
        layers = [list(layer) for layer in layers]
        for at in range(len(layers)) if sweep % 2 == 0 else reversed(range(len(layers))):
            if not fixed[at]:
                place_of = {key: spot for layer in layers for key, spot in _spots(layer)}
                others = [near[sweep % 2].get(key, [key]) for key in layers[at]]
                wished = [fmean(place_of[other] for other in keys) for keys in others]
                layers[at] = [key for _, _, key in sorted(zip(wished, range(len(others)), layers[at], strict=True))]
        if (crossings := _crossings(layers, pieces)) < least:
            best, least = layers, crossings
    return _swapped(best, least, pieces, fixed)


def _swapped(layers: Layers, least: int, pieces: Sequence[Link], fixed: Sequence[bool]) -> Layers:
    helped = least > 0
    while helped:
        helped = False
        for at, layer in enumerate(layers):
            for spot in range(0 if fixed[at] else 1, 0 if fixed[at] else len(layer)):
                layer[spot - 1], layer[spot] = layer[spot], layer[spot - 1]
                if (crossings := _crossings(layers, pieces)) < least:
                    least, helped = crossings, True
                else:
                    layer[spot - 1], layer[spot] = layer[spot], layer[spot - 1]
    return layers


def _spots(layer: Sequence[Key]) -> Iterable[tuple[Key, float]]:
    """Return the position of each cell in its layer as a fraction of the layer, comparable between layers."""
    return ((key, (spot + 0.5) / len(layer)) for spot, key in enumerate(layer))


def _crossings(layers: Layers, pieces: Sequence[Link]) -> int:
    found = {key: (number, spot) for number, layer in enumerate(layers) for spot, key in enumerate(layer)}
    gaps: dict[int, list[tuple[int, int]]] = {}
    for left, right in pieces:
        gaps.setdefault(found[left][0], []).append((found[left][1], found[right][1]))
    return sum((a - c) * (b - d) < 0 for ends in gaps.values() for (a, b), (c, d) in combinations(ends, 2))


def level(start: Point, end: Point) -> list[Point]:
    """Return a straight cubic piece without its start; nothing if start and end are equal."""
    (x, y), (u, v) = start, end
    return [] if start == end else [((2 * x + u) / 3, (2 * y + v) / 3), ((x + 2 * u) / 3, (y + 2 * v) / 3), end]


def bent(start: Point, end: Point) -> list[Point]:
    """Return a cubic piece, horizontal at both ends, without its start."""
    middle = (start[0] + end[0]) / 2
    return level(start, end) if start[1] == end[1] else [(middle, start[1]), (middle, end[1]), end]
