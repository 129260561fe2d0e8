"""One result per row: of a method with a seed, as a table (Markdown) and as figures (JSON)."""

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
from sentences import replacing


@dataclass(frozen=True)
class Row:
    """The result of one method with one seed: sizes in bytes, times in seconds.

    `answers` are those to all test questions; `same` counts those that a fresh process gave as well, if it ran.
    `merged` and `exported` are the largest differences of a logit between the trained model and the merged and the
    exported one; `logits` is the largest of these logits. `refusal` says why an adapter is not exported.
    """

    method: str
    seed: int
    answers: Sequence[str] = ()
    correct: int = 0
    loss: float = math.nan
    rank: int = 0
    trained: int = 0
    file: str = ""
    file_size: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0
    losses: Sequence[float] = ()
    diverged: bool = False
    same: int | None = None
    merged: float = 0.0
    exported: float | None = None
    refusal: str = ""
    logits: float = 0.0

    @property
    def exact(self) -> tuple[float, float]:
        """The share of answers that are right, and its standard error."""
        total = len(self.answers)
        share = self.correct / total
        return share, math.sqrt(share * (1 - share) / total)

    def cells(self) -> list[str]:
        """Return the cells of this row in the table."""
        share, error = self.exact
        sizes = [str(self.rank), f"{self.trained:,}", f"{self.file_size:,}", f"{self.seconds:.0f}"]
        if not self.file:
            sizes = ["-", "0", "-", sizes[-1] if self.seconds else "-"]
        name = f"{self.method} (diverged)" if self.diverged else self.method
        loss = "-" if math.isnan(self.loss) and not self.diverged else f"{self.loss:.3f}"
        return [name, str(self.seed), *sizes, f"{share:.2f} ± {error:.2f}", loss]


def table(rows: Sequence[Row], score: str = "exact match") -> str:
    """Format one line per row; `score` is the name of the share of answers that are right."""
    head = ["method", "seed", "rank", "trained numbers", "file (bytes)", "seconds", score, "test loss"]
    return aligned([head, *(row.cells() for row in rows)])


def means(rows: Sequence[Row], score: str) -> str:
    """Format one line per method: means over its seeds, and their standard error over seeds."""
    lines = [["method", "seeds", "trained numbers", "file (bytes)", "seconds", score, "test loss"]]
    for method in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == method]
        shares, last = [row.exact[0] for row in mine], mine[-1].cells()
        error = statistics.stdev(shares) / math.sqrt(len(mine)) if len(mine) > 1 else math.nan
        seconds = statistics.mean(row.seconds for row in mine)
        loss = statistics.mean(row.loss for row in mine)
        lines.append(
            [
                *(method, str(len(mine)), *last[3:5], f"{seconds:.0f}" if seconds else "-"),
                *(f"{statistics.mean(shares):.3f} ± {error:.3f}", "-" if math.isnan(loss) else f"{loss:.3f}"),
            ]
        )
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Format lines of cells, the head first, as Markdown, with aligned columns for the terminal."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |" for line in lines
    ]
    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([text[0], rule, *text[1:]])


def checks(row: Row) -> str:
    """Say in one line what loading, merging and exporting changed."""
    loaded = "not loaded" if row.same is None else f"{row.same} of {len(row.answers)} answers are the same"
    exported = f", not exported: {row.refusal}" if row.refusal else ""
    if row.exported is not None:
        exported = f", exported as PEFT's LoRA {row.exported:.1e}"
    return (
        f"{row.file}: in a fresh process {loaded}; largest difference of a logit (up to {row.logits:.0f}): merged "
        f"{row.merged:.1e}{exported}"
    )


def write_figures(path: Path, rows: Sequence[Row], about: Mapping[str, Any], packages: Sequence[str]) -> None:
    """Write all figures, what they are about, and the versions of the packages that made them."""
    installed = {dist.name: dist.version for dist in distributions()}
    names = ("tnadapt", "torch", "transformers", "numpy", *packages)
    record = {
        **about,
        "rows": [asdict(row) for row in rows],
        "versions": {"python": python_version()} | {name: installed.get(name) for name in names},
        "threads": torch.get_num_threads(),
    }
    with replacing(path) as draft:
        draft.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
