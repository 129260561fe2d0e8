"""The results of the language demo: a table (Markdown), answers before and after, and all figures (JSON)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reasoning import Question
from rows import Row, checks, table, write_figures
from sentences import replacing

SHOWN = 3  # questions whose answers are shown
WIDTH = 60  # characters of an answer that are shown


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


def note(rows: Sequence[Row], setting: Setting) -> str:
    """Say how the rows were made, and what chance gives."""
    answer, share = setting.frequent
    return (
        f"{setting.steps} steps of {setting.batch} questions at the learning rate {setting.learning_rate:g} for all "
        f"methods; {len(rows[0].answers)} unseen questions to test.\n"
        f"The most frequent answer of the training questions, {answer!r}, is right for {share:.2f} of them."
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
    with replacing(out / "table.md") as draft:
        lines = [f"# {setting.title}", table(rows), note(rows, setting)]
        lines += ["\n".join(f"* {checks(row)}" for row in rows if row.file)]
        lines += [f"```\n{before_and_after(rows, tests)}\n```"]
        draft.write_text("\n\n".join(filter(None, lines)) + "\n", encoding="utf-8")
    about = {"setting": asdict(setting), "expected": [question.answer for question in tests]}
    write_figures(out / "results.json", rows, about, ["peft", "reasoning_gym"])
