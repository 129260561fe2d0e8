"""The results of the demo: a table (Markdown), a plot (PNG), and all figures (JSON)."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from matplotlib.transforms import Bbox
from sentences import replacing

BASELINE, POINT, TEXT = "#7a7a7a", "#1f5f99", "#222222"
SIDES = (  # where to put the label of a point: offset in points, alignments
    (10, 0, "left", "center"),
    (-10, 0, "right", "center"),
    (0, 10, "center", "bottom"),
    (0, -10, "center", "top"),
)


@dataclass(frozen=True)
class Row:
    """The result of one method with one seed: sizes in bytes, times in seconds, accuracy as a fraction.

    `loaded` and `merged` compare the trained model with a fresh model that read the file, before and after
    merging: how many predictions differ, and the largest difference between two logits.
    """

    method: str
    seed: int
    accuracy: float
    step_time: float
    rank: int = 0
    trainable: int = 0
    file: str = ""
    file_size: int = 0
    loaded: tuple[int, float] = (0, 0.0)
    merged: tuple[int, float] = (0, 0.0)


@dataclass(frozen=True)
class Setting:
    """What all rows have in common."""

    title: str
    steps: int
    batch: int
    train_texts: int
    test_texts: int
    head_parameters: int
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """One method over all its seeds, with accuracies in percent. The deviation is 0 for one seed."""

    method: str
    rank: int
    trainable: int
    file_size: int
    step_time: float
    accuracy: float
    deviation: float
    seeds: int

    def cells(self) -> list[str]:
        """Return the cells of this method's row in the table."""
        spread = f" ± {self.deviation:.1f}" if self.seeds > 1 else ""
        adapter = [str(self.rank), f"{self.trainable:,}", f"{self.file_size / 1000:,.1f}"]
        if not self.trainable:
            adapter = ["-", "0", "-"]
        return [self.method, *adapter, f"{1000 * self.step_time:.1f}", f"{self.accuracy:.1f}{spread}"]


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """Group the rows by method, in the order in which the methods occur."""
    found = []
    for method in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == method]
        accuracies = [100 * row.accuracy for row in mine]
        found.append(
            Summary(
                method,
                mine[0].rank,
                mine[0].trainable,
                mine[0].file_size,
                statistics.median(row.step_time for row in mine),
                statistics.mean(accuracies),
                statistics.stdev(accuracies) if len(mine) > 1 else 0.0,
                len(mine),
            )
        )
    return found


def table(rows: Sequence[Row]) -> str:
    """Format one row per method as Markdown, with aligned columns for the terminal."""
    head = ["method", "rank", "trainable parameters", "file (KB)", "step (ms)", "accuracy (%)"]
    lines = [head, *(summary.cells() for summary in summaries(rows))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |" for line in lines
    ]
    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([text[0], rule, *text[1:]])


def check(row: Row, setting: Setting) -> str:
    """Say in one line what loading and merging changed."""
    total = setting.test_texts
    (loaded, apart), (merged, apart_merged) = row.loaded, row.merged
    return (
        f"{row.file}: loaded into a fresh model, {total - loaded} of {total} predictions are the same, "
        f"max |logit difference| {apart:.1e}; merged, {total - merged} of {total}, {apart_merged:.1e}"
    )


def notes(rows: Sequence[Row], setting: Setting) -> str:
    """Describe the runs behind the table, and what loading and merging changed."""
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(row.seed for row in rows))
    error = 50 / math.sqrt(setting.test_texts)
    lines = [
        f"{setting.steps} steps of {setting.batch} texts per row, seed {seeds}; {setting.train_texts:,} training texts",
        f"and {setting.test_texts:,} test texts. One accuracy has a standard error of at most {error:.1f} points.",
        f"The head's {setting.head_parameters:,} parameters are trained in every row and included in every file. The",
        "row head alone trains the head on features that are computed once.",
        "",
        *(f"* {check(row, setting)}" for row in rows if row.file),
    ]
    return "\n".join(lines)


def label_points(axes: Axes, points: Sequence[Summary]) -> None:
    """Label each point, on the first side where the label covers no point and no other label."""
    taken = []
    for point in points:
        ends = [(point.trainable, point.accuracy + side * point.deviation) for side in (-1, 1)]
        taken.append(Bbox(axes.transData.transform(ends)).padded(9))
    for point in points:
        place = (point.trainable, point.accuracy)
        label = axes.annotate(point.method, place, (0, 0), textcoords="offset points", color=TEXT, fontsize=11)
        for dx, dy, ha, va in SIDES:
            label.xyann = (dx, dy)
            label.set(ha=ha, va=va)
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def show_points(axes: Axes, points: Sequence[Summary]) -> None:
    """Draw one point per method; with several seeds, a bar of one standard deviation to each side."""
    sizes = [point.trainable for point in points]
    accuracies = [point.accuracy for point in points]
    axes.scatter(sizes, accuracies, s=75, color=POINT, zorder=3)
    if any(point.deviation for point in points):
        bars = [point.deviation for point in points]
        axes.errorbar(sizes, accuracies, yerr=bars, fmt="none", ecolor=POINT, alpha=0.45, capsize=3)
    axes.set_xlim(min(sizes) / 2, max(sizes) * 2)


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Plot accuracy against trainable parameters as PNG; the head alone is a dashed line."""
    every = summaries(rows)
    points = [summary for summary in every if summary.trainable]
    figure = Figure(figsize=(8, 5), dpi=160, layout="constrained")
    axes = figure.add_subplot(xscale="log")
    axes.set_xlabel("trainable parameters of the adapter (log scale)", color=TEXT)
    axes.set_ylabel("test accuracy (%)", color=TEXT)
    axes.set_title(f"{title}: accuracy against trainable parameters", loc="left", color=TEXT, pad=12)
    axes.grid(which="major", color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if points:
        show_points(axes, points)
    for base in (summary for summary in every if not summary.trainable):
        axes.axhline(base.accuracy, color=BASELINE, linestyle="--", linewidth=1.2)
        place = (axes.get_xlim()[1], base.accuracy)
        note = f"{base.method}: {base.accuracy:.1f} %"
        axes.annotate(note, place, (0, 5), textcoords="offset points", color=BASELINE, ha="right")
    axes.margins(y=0.12)
    figure.draw_without_rendering()  # fixes the layout, so that the positions of the points are known
    label_points(axes, points)
    figure.savefig(path)


def record(rows: Sequence[Row], setting: Setting) -> dict[str, Any]:
    """Collect all figures, and what is needed to reproduce them."""
    installed = {dist.name: dist.version for dist in distributions()}
    names = ("tnadapt", "torch", "transformers", "numpy")
    return {
        "setting": asdict(setting),
        "rows": [asdict(row) for row in rows],
        "versions": {"python": python_version()} | {name: installed.get(name) for name in names},
        "threads": torch.get_num_threads(),
    }


def write_report(rows: Sequence[Row], setting: Setting, out: Path) -> None:
    """Write table.md, plot.png and results.json into the folder `out`."""
    with replacing(out / "table.md") as draft:
        text = f"# {setting.title}\n\n{table(rows)}\n\n{notes(rows, setting)}\n"
        draft.write_text(text, encoding="utf-8")
    with replacing(out / "plot.png") as draft:
        draw(rows, setting.title, draft)
    with replacing(out / "results.json") as draft:
        draft.write_text(json.dumps(record(rows, setting), indent=2, default=str) + "\n", encoding="utf-8")
