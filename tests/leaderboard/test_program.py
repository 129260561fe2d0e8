"""The program of the leaderboard: small runs in a process, resumed, and refused where they cannot be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("sklearn")
pytest.importorskip("peft")


def run(*words, folder):
    command = [sys.executable, "benchmarks/leaderboard", "--tasks", "digits", "--results", str(folder), *words]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on_with_what_is_missing(tmp_path):
    """The second call has one more rate, runs that alone, and then the final run at the better one."""
    words = ("--methods", "LoRA r8 unit", "--search-only")
    first = run(*words, "--rates", "0.03125", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    (path,) = tmp_path.glob("*.json")
    before = path.read_bytes()
    second = run(*words, "--rates", "0.03125", "4096", folder=tmp_path)
    assert second.returncode == 0, second.stderr
    assert path.read_bytes() == before
    assert [line for line in second.stdout.splitlines() if "search" in line] == second.stdout.splitlines()
    assert second.stdout.count("\n") == 1
    assert "DIVERGED" in second.stdout  # named, and not dropped
    records = [json.loads(one.read_text()) for one in tmp_path.glob("*.json")]
    assert sorted(one["diverged"] for one in records) == [False, True]
    data = json.loads(before) | {"steps": 3}
    path.write_text(json.dumps(data))
    third = run(*words, "--rates", "0.03125", folder=tmp_path)
    assert third.returncode == 1
    assert third.stderr.startswith("leaderboard: ")
    assert "expected a record of these versions and 80 steps, got another" in third.stderr
    assert "Traceback" not in third.stderr


def test_a_task_that_does_not_exist_is_named_in_one_line(tmp_path):
    found = run("--tasks", "other", folder=tmp_path)
    assert found.returncode == 2
    assert "invalid choice: 'other'" in found.stderr
    assert "Traceback" not in found.stderr
