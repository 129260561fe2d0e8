"""Eight devices give the results of one, and merging needs no communication between them."""

import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")


CHECKS = ["adapted", "applied", "merged", "explicit", "explicit_adapted"]


@pytest.fixture(scope="module")
def ran():
    """A process that made all checks: to start one for each takes longer than the checks."""
    run = f"import runpy, sys; sys.argv = ['worker', *{CHECKS}]; runpy.run_path({str(WORKER)!r}, run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", run],
        cwd=WORKER.parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.mark.parametrize("what", CHECKS)
def test_a_mesh_of_eight_devices_gives_the_results_of_one(ran, what):
    assert f"{what}: as one device\n" in ran.stdout, ran.stderr
