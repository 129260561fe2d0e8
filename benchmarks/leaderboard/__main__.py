"""The table of methods: search the rate of each on the validation split, then run three seeds at the best one.

    python benchmarks/leaderboard                                     what is not recorded yet, and the page
    python benchmarks/leaderboard --quick                             tiny runs in a folder that goes; prints the page
    python benchmarks/leaderboard --tasks digits --methods "LoRA r8" "LoTR r16 unit" --seeds 0 1 2
    python benchmarks/leaderboard --page                              only draw the page from the records

Each run leaves a JSON record in results/, and docs/evidence/leaderboard.md is drawn from them; with --results FOLDER
both lie there. A run that has a record is not run again, so that the program can be stopped and started at will. All
methods have the same grid of rates, the same steps, and the same batches for a seed.
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path

import language
import torch
from methods import KAPPAS, METHODS, MethodError
from page import write_page
from records import Key, Record, RecordError, read, read_all, versions, write
from runs import RunError, run_apart
from tasks import TASKS, Task

ROOT = Path(__file__).parents[2]
GRID = tuple(2.0**power for power in range(-11, -2))
SEEDS = (0, 1, 2)
QUICK_GRID, QUICK_SEEDS = (2.0**-6,), (0,)
SEARCHED = 100  # the seed of the search, which is none of the final ones


def recorded(folder: Path, task: Task, key: Key, device: str) -> Record:
    """Return the record of a run, and make it first if there is none. Raises RecordError for other versions."""
    path = folder / key.file
    if path.exists():
        record = read(path)
        if record.key != key:
            raise RecordError(
                f"{path}: expected a record of rate {key.rate!r}, got one of rate {record.key.rate!r}, whose file "
                "has the same name; take rates that differ in their first three digits"
            )
        if dict(record.versions) != versions() or record.steps != task.steps:
            raise RecordError(
                f"{path}: expected a record of these versions and {task.steps} steps, got another; "
                "remove it, or keep the new ones in another folder with --results"
            )
        return record
    record = run_apart(task, key, device)
    write(folder, record)
    mark = " DIVERGED" if record.diverged else ""
    test = "" if record.test is None else f", test {100 * record.test:.1f} %"
    print(
        f"{key.task}, {key.method}, rate {key.rate:.3g}, seed {key.seed}, {key.phase}: validation "
        f"{100 * record.score:.1f} %, loss {record.loss:.3f}{test}, {record.seconds:.0f} s{mark}",
        flush=True,
    )
    return record


def rate(text: str) -> float:
    """Return a learning rate of the command line. Raises ArgumentTypeError unless it is a positive number."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"invalid rate {text!r}: expected a positive number such as 0.03125 for 2^-5")
    return found


def device(text: str) -> str:
    """Return a device of the command line. Raises ArgumentTypeError unless this machine has it."""
    try:
        torch.zeros(1, device=text)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise argparse.ArgumentTypeError(f"{text}: {str(error).partition(chr(10))[0]}") from error
    return text


def best_rate(records: list[Record]) -> float | None:
    """Return the rate of the lowest mean validation loss among those that never diverged; None if all did."""
    losses: dict[float, list[float]] = {}
    for one in records:
        losses.setdefault(one.key.rate, []).append(math.inf if one.diverged else one.loss)
    means = {rate: sum(found) / len(found) for rate, found in losses.items()}
    good = [rate for rate, mean in means.items() if math.isfinite(mean)]
    return min(good, key=means.__getitem__) if good else None


def arguments() -> argparse.Namespace:
    """Parse the command line, and check names of tasks and methods."""
    parser = argparse.ArgumentParser(prog="leaderboard", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=list(TASKS),
        metavar="TASK",
        help=f"from {', '.join(TASKS)}; default all, or the quick ones with --quick",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        choices=[*METHODS, *KAPPAS],
        metavar="METHOD",
        help=f"such as 'LoRA r8 unit'; default all {len(METHODS)}; a wrong name lists them",
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="of the final runs; default 0 1 2")
    parser.add_argument(
        "--rates", nargs="+", type=rate, help="the grid, as decimal numbers; default 2^-11 to 2^-3 in factors of 2"
    )
    parser.add_argument("--search-seeds", nargs="+", type=int, default=[SEARCHED], help="of the search; default 100")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of the records")
    parser.add_argument("--device", type=device, default="cpu", help="such as cuda (default cpu)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny runs, in a folder that is removed")
    parser.add_argument("--search-only", action="store_true", help="no final runs")
    parser.add_argument("--page", action="store_true", help="draw the page from the records, and run nothing")
    options = parser.parse_args()
    quick_tasks = [name for name in TASKS if name not in language.KINDS[1:]]
    options.tasks = options.tasks or (quick_tasks if options.quick else list(TASKS))
    options.rates = tuple(options.rates or (QUICK_GRID if options.quick else GRID))
    options.seeds = options.seeds or (QUICK_SEEDS if options.quick else SEEDS)
    return options


def run_all(options: argparse.Namespace) -> int:
    """Search and run every method on every task. Return how many were left out, since a run of theirs failed."""
    left_out = 0
    for name in options.tasks:
        task = TASKS[name].load(options.quick, options.device)
        for method in options.methods:
            try:
                run_method(options, name, task, method)
            except RunError as error:
                left_out += 1
                print(f"left out: {error}", flush=True)
    return left_out


def run_method(options: argparse.Namespace, name: str, task: Task, method: str) -> None:
    """Search the rate of a method, and make its final runs. Raises RunError if one fails."""
    found = [
        recorded(options.results, task, Key(name, method, rate, seed, "search"), options.device)
        for seed in options.search_seeds
        for rate in options.rates
    ]
    best = best_rate(found)
    if best is None:
        print(f"{name}, {method}: every rate of the grid diverged", flush=True)
        return
    for seed in () if options.search_only else options.seeds:
        recorded(options.results, task, Key(name, method, best, seed, "final"), options.device)


def main() -> int:
    """Run what is asked for; return 1, with one line that says why, if that cannot be."""
    options = arguments()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.results = Path(scratch)
        left_out = 0
        try:
            if not options.page:
                left_out = run_all(options)
            elif not any(options.results.glob("*.json")):
                raise RecordError(
                    f"{options.results}: expected a folder with records, got none; run without --page first"
                )
            is_ours = options.results.resolve() == (ROOT / "results").resolve()
            write_page(read_all(options.results), ROOT / "docs" / "evidence" if is_ours else options.results)
            if options.quick:  # the folder goes
                print((options.results / "leaderboard.md").read_text(encoding="utf-8"))
        except (RecordError, MethodError) as error:
            print(f"leaderboard: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("stopped; what is recorded stays, and the next call goes on from there", file=sys.stderr)
            return 130
    return 1 if left_out else 0


if __name__ == "__main__":
    sys.exit(main())
