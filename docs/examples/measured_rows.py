"""Read the records in results/ for the pages that quote them: trained methods, learning rates, and times of a step."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "Speed", "Trained", "read_rates", "read_speed", "read_trained"]

RESULTS = Path(__file__).parents[2] / "results"


@dataclass(frozen=True)
class Trained:
    """A method on one task: means over the seeds that read the test split."""

    method: str
    numbers: int
    bytes: int
    loss: float
    test: float
    error: float
    seeds: int
    forgetting: float
    rate: float

    @property
    def family(self) -> str:
        """The method without its rank and scale."""
        return self.method.partition(" r")[0]


@dataclass(frozen=True)
class Speed:
    """The times of a step in one regime: method -> column -> number; `made` says when and where."""

    title: str
    rows: Mapping[str, Mapping[str, float]]
    made: str


def read_trained(task: str) -> list[Trained]:
    """Read the final runs of a task, one for each method, sorted by validation loss."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(RESULTS.glob(f"{task}--*--final.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        runs[one["key"]["method"]].append(one)
    return sorted((_mean(method, some) for method, some in runs.items()), key=lambda one: one.loss)


def _mean(method: str, runs: list[dict[str, Any]]) -> Trained:
    tests = [100 * one["test"] for one in runs]
    rises = [one["forgetting"][1] - one["forgetting"][0] for one in runs if one["forgetting"]]
    return Trained(
        method=method,
        numbers=runs[0]["numbers"],
        bytes=runs[0]["bytes"],
        loss=statistics.fmean(one["loss"] for one in runs),
        test=statistics.fmean(tests),
        error=statistics.stdev(tests) / math.sqrt(len(tests)),
        seeds=len(runs),
        forgetting=statistics.fmean(rises) if rises else math.nan,
        rate=runs[0]["key"]["rate"],
    )


def read_rates(task: str) -> dict[str, dict[float, float]]:
    """Read the search of a task: method -> learning rate -> mean validation loss, infinite if a run diverged."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(RESULTS.glob(f"{task}--*--search.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        good = not one["diverged"] and math.isfinite(one["loss"])
        found[one["key"]["method"]][one["key"]["rate"]].append(one["loss"] if good else math.inf)
    return {
        method: {rate: statistics.fmean(losses) for rate, losses in sorted(rates.items())}
        for method, rates in found.items()
    }


def read_speed(regime: str) -> Speed:
    """Read the times on a CPU in the regime whose title begins with these words. Raises ValueError if there is none."""
    record = json.loads((RESULTS / "speed" / "regimes-cpu.json").read_text(encoding="utf-8"))
    for table in record["tables"]:
        if table["title"].startswith(regime):
            rows = {row["method"]: {k: v for k, v in row.items() if isinstance(v, float)} for row in table["rows"]}
            threads = f"{record['threads']} thread" + "s" * (record["threads"] != 1)
            busy = f" while {record['load']:.1f} other processes ran" if record["load"] >= 0.5 else ""  # noqa: PLR2004
            return Speed(table["title"], rows, f"{record['machine']}, {threads}, {record['date']}{busy}")
    titles = ", ".join(repr(table["title"]) for table in record["tables"])
    raise ValueError(f"results/speed/regimes-cpu.json: expected a table that begins {regime!r}, got {titles}")
