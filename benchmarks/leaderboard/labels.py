"""Labels of points in a picture: each beside its point, and none over another label or over a point."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

__all__ = ["Label", "place_labels"]

SIZE = 7.0  # of the letters, in points
HEIGHT = 1.3 * SIZE  # of a line
GAP = 5.0  # from the middle of a point to its label
MOVES = sorted((half / 2 for half in range(-24, 25)), key=abs)  # how far up a label may be moved, in lines
INCH = 72.0  # in points


@dataclass(frozen=True)
class Label:
    """The text of a point, where the point is in the data, how far its error bar reaches, and its color."""

    text: str
    x: float
    y: float
    error: float
    color: str


def place_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Write each label right or left of its point, at its height, or at the next height that is free.

    A label that had to be moved is joined to its point by a thin line. Call it when the limits of the axes are final.
    """
    axes.figure.draw_without_rendering()
    unit = axes.figure.dpi / INCH
    points, bars = [], []
    for one in labels:
        low, at, high = axes.transData.transform([(one.x, one.y + one.error * sign) for sign in (-1, 0, 1)])
        points.append(Bbox([at - GAP * unit * 0.7, at + GAP * unit * 0.7]))
        bars.append(Bbox([low - unit, high + unit]))
    inside, taken = axes.get_window_extent(), list(points)
    for number in sorted(range(len(labels)), key=lambda number: -points[number].y0):
        others = bars[:number] + bars[number + 1 :]
        side, move, box = min(
            _places(axes, labels[number], points[number]),
            key=lambda place: (
                not (inside.contains(*place[2].min) and inside.contains(*place[2].max)),
                place[2].count_overlaps(taken),
                2 * place[2].count_overlaps(others) + abs(place[1]),
            ),
        )
        taken.append(box)
        _write(axes, labels[number], side, move)


def _places(axes: Axes, label: Label, point: Bbox) -> Iterator[tuple[int, float, Bbox]]:
    """Yield where a label may be: its side (1 is the right one), how many lines above its point, and its box."""
    unit = axes.figure.dpi / INCH
    text = axes.text(0, 0, label.text, fontsize=SIZE)
    width = text.get_window_extent().width
    text.remove()
    x, y = (point.min + point.max) / 2
    for move in MOVES:
        low = y + (move - 0.5) * HEIGHT * unit
        for side in (1, -1):
            left = x + GAP * unit if side == 1 else x - GAP * unit - width
            yield side, move, Bbox.from_bounds(left, low, width, HEIGHT * unit)


def _write(axes: Axes, label: Label, side: int, move: float) -> None:
    line = {"arrowstyle": "-", "color": label.color, "linewidth": 0.5, "shrinkA": 0.0, "shrinkB": 0.0}
    text = axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(side * GAP, move * HEIGHT),
        textcoords="offset points",
        horizontalalignment="left" if side == 1 else "right",
        verticalalignment="center",
        fontsize=SIZE,
        color=label.color,
        arrowprops=line if move else None,
    )
    text.set_in_layout(False)  # the layout is done
