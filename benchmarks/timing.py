"""Ratios of times, measured in the same run: rounds interleave the contestants, and medians are taken over rounds."""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROUNDS = 9
SLICE = 0.02  # minimum seconds per contestant and round


def arguments(about: str) -> argparse.Namespace:
    """Parse the options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def medians(contestants: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median seconds per run of each contestant. Each round runs all of them in turn."""
    for run in contestants.values():
        _seconds(run, 2)  # warm up
    repeats = {name: max(1, round(SLICE / _seconds(run, 1))) for name, run in contestants.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            times[name].append(_seconds(run, repeats[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def report(options: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows as a Markdown table under a line that describes the machine; write JSON on request."""
    machine = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    where = f"torch {torch.__version__}, {machine}, {options.threads} threads, {options.dtype}"
    print(f"\n{where}, medians of {options.rounds} rounds\n")
    heads = list(rows[0])
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(f'{v:.2f}' if isinstance(v, float) else str(v) for v in row.values())} |")
    if options.json:
        options.json.write_text(json.dumps({"where": where, "rows": list(rows)}, indent=1))
