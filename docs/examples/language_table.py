"""The results of the language demo: a table (Markdown), answers before and after, and all figures (JSON)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from reasoning import Question
from sentences import replacing

SHOWN = 3  # questions whose answers are shown
WIDTH = 60  # characters of an answer that are shown


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
        """The share of exact matches, and its standard error."""
        total = len(self.answers)
        share = self.correct / total
        return share, math.sqrt(share * (1 - share) / total)

    def cells(self) -> list[str]:
        """Return the cells of this row in the table."""
        share, error = self.exact
        sizes = [str(self.rank), f"{self.trained:,}", f"{self.file_size:,}", f"{self.seconds:.0f}"]
        if not self.file:
            sizes = ["-", "0", "-", "-"]
        name = f"{self.method} (diverged)" if self.diverged else self.method
        return [name, str(self.seed), *sizes, f"{share:.2f} ± {error:.2f}", f"{self.loss:.3f}"]


@dataclass(frozen=True)
class Setting:
    """What all rows have in common."""

    task: str
    model: str
    learning_rate: float
    steps: int
    batch: int
    frequent: tuple[str, float]
    arguments: Mapping[str, Any]

    @property
    def title(self) -> str:
        """What is learnt by which model."""
        return f"{self.task}, {self.model}"


def table(rows: Sequence[Row]) -> str:
    """Format one line per row as Markdown, with aligned columns for the terminal."""
    head = ["method", "seed", "rank", "trained numbers", "file (bytes)", "seconds", "exact match", "test loss"]
    lines = [head, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |" for line in lines
    ]
    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([text[0], rule, *text[1:]])


def note(rows: Sequence[Row], setting: Setting) -> str:
    """Say how the rows were made, and what chance gives."""
    answer, share = setting.frequent
    return (
        f"{setting.steps} steps of {setting.batch} questions at the learning rate {setting.learning_rate:g} for all "
        f"methods; {len(rows[0].answers)} unseen questions to test.\n"
        f"The most frequent answer of the training questions, {answer!r}, is right for {share:.2f} of them."
    )


def checks(row: Row) -> str:
    """Say in one line what loading, merging and exporting changed."""
    loaded = "not loaded" if row.same is None else f"{row.same} of {len(row.answers)} answers are the same"
    exported = f"not exported: {row.refusal}"
    if row.exported is not None:
        exported = f"exported as PEFT's LoRA {row.exported:.1e}"
    return (
        f"{row.file}: in a fresh process {loaded}; largest difference of a logit (up to {row.logits:.0f}): merged "
        f"{row.merged:.1e}, {exported}"
    )


def shown(text: str) -> str:
    """Return the beginning of an answer, on one line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= WIDTH else line[:WIDTH] + "...")


def before_and_after(rows: Sequence[Row], tests: Sequence[Question]) -> str:
    """Show the first questions with the answers of all methods of the first seed."""
    first = [row for row in rows if row.seed == rows[0].seed]
    width = max(len(row.method) for row in first)
    parts = []
    for number, question in enumerate(tests[:SHOWN]):
        parts.append(f"{' '.join(question.text.split())}\n  {'expected'.ljust(width)}  {question.answer!r}")
        parts += [f"  {row.method.ljust(width)}  {shown(row.answers[number])}" for row in first]
    return "\n".join(parts)


def report(rows: Sequence[Row], setting: Setting, tests: Sequence[Question]) -> str:
    """Return the answers before and after, the checks, the table and a note, for the terminal."""
    lines = "\n".join(checks(row) for row in rows if row.file)
    parts = [before_and_after(rows, tests), lines, table(rows), note(rows, setting)]
    return "\n\n".join(filter(None, parts))


def write_report(rows: Sequence[Row], setting: Setting, tests: Sequence[Question], out: Path) -> None:
    """Write table.md and results.json into the folder `out`."""
    installed = {dist.name: dist.version for dist in distributions()}
    names = ("tnadapt", "torch", "transformers", "numpy", "peft", "reasoning_gym")
    with replacing(out / "table.md") as draft:
        lines = [f"# {setting.title}", table(rows), note(rows, setting)]
        lines += ["\n".join(f"* {checks(row)}" for row in rows if row.file)]
        lines += [f"```\n{before_and_after(rows, tests)}\n```"]
        draft.write_text("\n\n".join(filter(None, lines)) + "\n", encoding="utf-8")
    with replacing(out / "results.json") as draft:
        record = {
            "setting": asdict(setting),
            "rows": [asdict(row) for row in rows],
            "expected": [question.answer for question in tests],
            "versions": {"python": python_version()} | {name: installed.get(name) for name in names},
            "threads": torch.get_num_threads(),
        }
        draft.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
