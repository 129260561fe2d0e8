"""Ratios of times, measured in the same run: rounds interleave the contestants, and medians are taken over rounds."""

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import recording
import torch

ROUNDS = 9
LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # before this program adds to it
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_clock = [time.perf_counter]
SLICE = 0.02  # minimum seconds per contestant and round


def parser_of(about: str, *, dtype: str = "float32") -> argparse.ArgumentParser:
    """Return a parser of the options that every benchmark takes; a program may add others."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=dtype, choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    what = "what is measured; that of the processor, of one thread, leaves out the waits of a busy machine"
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help=what)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    record_options(parser)
    return parser


def record_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a program that writes a record."""
    what = "also write a record, into results/speed or a folder"
    parser.add_argument("--record", type=Path, nargs="?", const=recording.FOLDER, metavar="FOLDER", help=what)
    parser.set_defaults(commit=recording.commit())  # now: it may be another one when the run ends
    parser.add_argument("--label", default="", help="a word for the record, to keep an older one beside it")


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the options and set the threads."""
    options = parser.parse_args()
    if options.clock == "cpu" and (options.threads != 1 or options.device != "cpu"):
        parser.error("--clock cpu: expected --threads 1 and --device cpu, whose time it is")
    torch.set_num_threads(options.threads)
    _clock[0] = CLOCKS[options.clock]
    return options


def arguments(about: str) -> argparse.Namespace:
    """Parse the options that every benchmark takes."""
    return parsed(parser_of(about))


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
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = _clock[0]()
    for _ in range(repeats):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (_clock[0]() - start) / repeats


def report(options: argparse.Namespace, rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Print the rows as a Markdown table under a line that describes the machine; write JSON and a record on request.

    A program that reports more than once has all its tables in one record.
    """
    machine = recording.machine(options.device)
    where = f"torch {torch.__version__}, {machine}, {options.threads} threads, {options.dtype}"
    first = not getattr(options, "tables", ())
    rounds = f", medians of {options.rounds} rounds" if options.rounds > 1 else ""
    print(f"\n{where}{rounds}\n" if first else "", f"\n{title}\n" if title else "", sep="")
    heads = list(rows[0])
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(f'{v:.2f}' if isinstance(v, float) else str(v) for v in row.values())} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"where": where, "rows": list(rows)}, indent=1))
    options.tables = [*getattr(options, "tables", ()), recording.table(rows, title)]
    write_record(options, options.tables)


def write_record(options: argparse.Namespace, tables: Sequence[recording.Table]) -> None:
    """Write the record of a run of this program, named by its file, if asked for."""
    if options.record is None:
        return
    device = getattr(options, "device", "cpu")
    recording.write(
        options.record,
        recording.Record(
            program=Path(sys.argv[0]).stem,
            device=device.partition(":")[0],
            machine=recording.machine(device),
            cores=recording.cores(),
            threads=getattr(options, "threads", 0),
            dtype=getattr(options, "dtype", "float32"),
            date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
            rounds=getattr(options, "rounds", 1),
            clock=getattr(options, "clock", "wall"),
            load=round(LOAD, 1),
            commit=options.commit,
            versions=recording.versions(),
            tables=tables,
            label=options.label,
        ),
    )
