"""The quick table, with every method: it takes minutes, so `make leaderboard-quick` alone runs it."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.thorough import left_to_leaderboard

pytest.importorskip("sklearn")
pytest.importorskip("peft")

ROOT = Path(__file__).parents[2]
KEPT = ("results", "docs")


def files():
    """Return when each record and each page was written, and its size."""
    stats = {path: path.stat() for folder in KEPT for path in (ROOT / folder).rglob("*") if path.is_file()}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


@left_to_leaderboard("every method on every quick task takes minutes")
@pytest.mark.usefixtures("modules")
def test_the_quick_table_has_every_method_and_leaves_the_records_alone():
    from methods import METHODS
    from tasks import TASKS

    before = files()
    start = time.perf_counter()
    found = subprocess.run(
        [sys.executable, "benchmarks/leaderboard", "--quick"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"took {time.perf_counter() - start:.0f} s")
    assert [line for line in found.stdout.splitlines() if line.startswith("left out")] == []
    assert found.returncode == 0, found.stderr
    tasks = [name for name in TASKS if f"## {name}" in found.stdout]
    assert len(tasks) == len(TASKS) - 3  # one of the four tasks of the language model
    diverged = re.findall(r"^\w+, (.+): every rate of the grid diverged$", found.stdout, re.MULTILINE)
    assert set(diverged) <= {"RandLoRA r16"}  # at its paper's scale, it steps much further than LoRA at this rate
    wanted = {name: 2 * len(tasks) - diverged.count(name) for name in METHODS}  # rows of final runs, and of rates
    assert {name: found.stdout.count(f"\n| {name} | ") for name in METHODS} == wanted
    assert files() == before
