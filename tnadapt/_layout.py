"""Where the cells of a layered picture lie: layers from left to right, no cell over another, edges around them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean

__all__: list[str] = []

Key = tuple[str, str]
Point = tuple[float, float]
Link = tuple[Key, Key]  # the left end first
Layers = list[list[Key]]

ROOM = 14.0  # between two cells of one layer
NEAR, FAR = 26.0, 66.0  # between two layers: the steeper the edges, the wider
SWEEPS = 60  # of heights; more move no picture of the families by a pixel
STIFF = 8.0  # how much more a bend of a long edge is kept straight than a cell


@dataclass(frozen=True)
class Cell:
    """A rectangle to be placed: it has a line at some height, where its edges end, and room above and below that line.

    `layer`s must differ along every edge. `inset` is how far inside the cell edges end, from either side; `spread` how
    far apart the ends on one side are; `align` where it stands in a wider layer, from 0 (left) to 1 (right). A layer
    of fixed cells keeps its order.
    """

    layer: int
    width: float
    above: float
    below: float
    inset: float = 0.0
    spread: float = 0.0
    align: float = 0.5
    is_fixed: bool = False
    turns: bool = False  # its edges come from one side and end upright


BEND = Cell(layer=0, width=0.0, above=2.0, below=2.0)  # where a long edge passes a layer


@dataclass(frozen=True)
class Layout:
    """Cells by their left end and their line, edges as a start and three points for every cubic piece."""

    spots: Mapping[Key, Point]
    routes: tuple[tuple[Point, ...], ...]
    width: float
    top: float
    bottom: float


def place(cells: Mapping[Key, Cell], links: Sequence[Link]) -> Layout:
    """Order the layers for few crossings, then choose heights that keep edges straight, then widths.

    An edge runs level through the layers and bends only between them, so it meets no cell but its own.
    """
    numbers = {layer: number for number, layer in enumerate(sorted({cell.layer for cell in cells.values()}))}
    layers: Layers = [[] for _ in numbers]
    for key, cell in cells.items():
        layers[numbers[cell.layer]].append(key)
    chains = [_chain(link, number, cells, numbers, layers) for number, link in enumerate(links)]
    pieces = [piece for chain in chains for piece in pairwise(chain)]
    fixed = [any(key in cells and cells[key].is_fixed for key in layer) for layer in layers]
    layers = _ordered(layers, pieces, fixed)
    ports = _ports(layers, pieces, cells)
    heights = _heights(layers, pieces, ports, cells)
    return _drawn(layers, chains, ports, heights, cells)


def _chain(
    link: Link, number: int, cells: Mapping[Key, Cell], numbers: Mapping[int, int], layers: Layers
) -> tuple[Key, ...]:
    """The two ends of an edge, and between them a bend in every layer that it passes; the bends join their layers."""
    left, right = link
    passed = range(numbers[cells[left].layer] + 1, numbers[cells[right].layer])
    bends = tuple((f"bend {number}", str(layer)) for layer in passed)
    for layer, bend in zip(passed, bends, strict=True):
        layers[layer].append(bend)
    return (left, *bends, right)


def _ordered(layers: Layers, pieces: Sequence[Link], fixed: Sequence[bool]) -> Layers:
    """By barycentres, to and fro; the best of all sweeps, then neighbours swapped while that helps."""
    near: dict[Key, list[Key]] = {key: [] for layer in layers for key in layer}
    for left, right in pieces:
        near[left].append(right)
        near[right].append(left)
    best, least = layers, _crossings(layers, pieces)
    for sweep in range(8):
        layers = [list(layer) for layer in layers]
        for at in range(len(layers)) if sweep % 2 == 0 else reversed(range(len(layers))):
            if not fixed[at]:
                place_of = {key: spot for layer in layers for key, spot in _spots(layer)}
                layers[at].sort(key=lambda key: fmean([place_of[other] for other in near[key]] or [place_of[key]]))
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
    """Every cell's place in its layer, in parts of the layer, so that layers of unlike length compare."""
    return ((key, (spot + 0.5) / len(layer)) for spot, key in enumerate(layer))


def _crossings(layers: Layers, pieces: Sequence[Link]) -> int:
    found = {key: (number, spot) for number, layer in enumerate(layers) for spot, key in enumerate(layer)}
    gaps: dict[int, list[tuple[int, int]]] = {}
    for left, right in pieces:
        gaps.setdefault(found[left][0], []).append((found[left][1], found[right][1]))
    return sum((a - c) * (b - d) < 0 for ends in gaps.values() for (a, b), (c, d) in combinations(ends, 2))


def _ports(layers: Layers, pieces: Sequence[Link], cells: Mapping[Key, Cell]) -> dict[tuple[Key, Link], float]:
    """How far below the line of a cell each of its edges ends: spread evenly, in the order of their other ends."""
    spot = {key: number for layer in layers for number, key in enumerate(layer)}
    ports: dict[tuple[Key, Link], float] = {}
    for layer in layers:
        for key in layer:
            for side in (0, 1):
                mine = sorted(
                    (piece for piece in pieces if piece[1 - side] == key), key=lambda piece: spot[piece[side]]
                )
                spread = cells.get(key, BEND).spread
                for number, piece in enumerate(mine):
                    ports[key, piece] = (number - (len(mine) - 1) / 2) * spread
    return ports


def _heights(
    layers: Layers, pieces: Sequence[Link], ports: Mapping[tuple[Key, Link], float], cells: Mapping[Key, Cell]
) -> dict[Key, float]:
    """Each cell as near to the middle of its neighbours as its own layer allows, over and over."""
    pulls: dict[Key, list[tuple[Key, float]]] = {key: [] for layer in layers for key in layer}
    for piece in pieces:
        left, right = piece
        step = ports[left, piece] - ports[right, piece]
        pulls[left].append((right, -step))
        pulls[right].append((left, step))
    heights: dict[Key, float] = {}
    for layer in layers:
        heights |= dict(zip(layer, _settled([0.0] * len(layer), layer, cells), strict=True))
    for sweep in range(SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wished = [fmean([heights[other] + step for other, step in pulls[key]] or [heights[key]]) for key in layer]
            heights |= dict(zip(layer, _settled(wished, layer, cells), strict=True))
    return {key: float(round(height)) for key, height in heights.items()}


def _settled(wished: Sequence[float], layer: Sequence[Key], cells: Mapping[Key, Cell]) -> list[float]:
    """The heights nearest to those wished, in least squares, that keep the layer's order and room.

    With the room subtracted that is a regression by a rising sequence, solved by pooling neighbours.
    """
    offsets = [0.0]
    for upper, lower in pairwise(layer):
        offsets.append(offsets[-1] + cells.get(upper, BEND).below + ROOM + cells.get(lower, BEND).above)
    pools: list[tuple[float, float, int]] = []  # weight, mean, count
    for key, wish, offset in zip(layer, wished, offsets, strict=True):
        pool = (1.0 if key in cells else STIFF, wish - offset, 1)
        while pools and pools[-1][1] > pool[1]:
            weight, mean, count = pools.pop()
            total = weight + pool[0]
            pool = (total, (weight * mean + pool[0] * pool[1]) / total, count + pool[2])
        pools.append(pool)
    means = [mean for _, mean, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _drawn(
    layers: Layers,
    chains: Sequence[tuple[Key, ...]],
    ports: Mapping[tuple[Key, Link], float],
    heights: Mapping[Key, float],
    cells: Mapping[Key, Cell],
) -> Layout:
    layer_of = {key: number for number, layer in enumerate(layers) for key in layer}
    widths = [max((cells.get(key, BEND).width for key in layer), default=0.0) for layer in layers]
    steep = [0.0] * len(layers)
    for chain in chains:
        for piece in pairwise(chain):
            rise = heights[piece[0]] + ports[piece[0], piece] - heights[piece[1]] - ports[piece[1], piece]
            steep[layer_of[piece[0]]] = max(steep[layer_of[piece[0]]], abs(rise))
    lefts = [0.0]
    for width, rise in zip(widths[:-1], steep, strict=False):
        lefts.append(lefts[-1] + width + min(NEAR + 0.4 * rise, FAR))
    spots: dict[Key, Point] = {}
    for key, cell in cells.items():
        at = layer_of[key]
        spots[key] = (lefts[at] + cell.align * (widths[at] - cell.width), heights[key])

    def route(chain: tuple[Key, ...]) -> tuple[Point, ...]:
        """Level out of the first cell, through the gaps in bends, level into the last cell."""
        start, end, path = chain[0], chain[-1], list[Point]()
        for piece in pairwise(chain):
            (a, b), at = piece, layer_of[piece[0]]
            out, into = heights[a] + ports[a, piece], heights[b] + ports[b, piece]
            near, far = lefts[at] + widths[at], lefts[at + 1]
            if a == start:
                path.append((spots[a][0] + cells[a].width - cells[a].inset, out))
            path += level(path[-1], (near, out))
            turns = b == end and cells[b].turns
            path += [(far, out), (far, (out + into) / 2), (far, into)] if turns else bent(path[-1], (far, into))
            if b == end and not turns:
                path += level(path[-1], (spots[b][0] + cells[b].inset, into))
        return tuple(path)

    top = min(heights[key] - cell.above for key, cell in cells.items())
    bottom = max(heights[key] + cell.below for key, cell in cells.items())
    return Layout(spots, tuple(route(chain) for chain in chains), lefts[-1] + widths[-1], top, bottom)


def level(start: Point, end: Point) -> list[Point]:
    """A straight cubic piece, without its start; nothing where start and end are one."""
    (x, y), (u, v) = start, end
    return [] if start == end else [((2 * x + u) / 3, (2 * y + v) / 3), ((x + 2 * u) / 3, (y + 2 * v) / 3), end]


def bent(start: Point, end: Point) -> list[Point]:
    """A cubic piece that leaves and arrives level, without its start."""
    middle = (start[0] + end[0]) / 2
    return level(start, end) if start[1] == end[1] else [(middle, start[1]), (middle, end[1]), end]
