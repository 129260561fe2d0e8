"""The quick table of each task, with every method: it takes minutes, so `make leaderboard-quick` alone runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("peft")

ROOT = Path(__file__).parents[2]
KEPT = ("results", "docs")


def files():
    """Return when each record and each page was written, and its size."""
    stats = {path: path.stat() for folder in KEPT for path in (ROOT / folder).rglob("*") if path.is_file()}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


@pytest.mark.skipif("LEADERBOARD" not in os.environ, reason="make leaderboard-quick runs it")
@pytest.mark.parametrize(
    "task", ["digits", "sentences", "family_relationships", "spell_backward", "chain_sum", "letter_counting"]
)
@pytest.mark.usefixtures("modules")
def test_the_quick_table_of_a_task_has_every_method_and_leaves_the_records_alone(task):
    from methods import METHODS

    before = files()
    found = subprocess.run(
        [sys.executable, "benchmarks/leaderboard", "--quick", "--tasks", task],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "left out" not in found.stdout
    assert f"## {task}" in found.stdout
    assert [name for name in METHODS if found.stdout.count(f"\n| {name} | ") != 2] == []  # final runs, and the rates
    assert files() == before
