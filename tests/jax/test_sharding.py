"""Eight devices give the results of one, and merging needs no communication between them."""

import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")


@pytest.mark.parametrize("what", ["adapted", "applied", "merged", "explicit", "explicit_adapted"])
def test_a_mesh_of_eight_devices_gives_the_results_of_one(what):
    run = f"import runpy, sys; sys.argv = ['worker', {what!r}]; runpy.run_path({str(WORKER)!r}, run_name='__main__')"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", run],
        cwd=WORKER.parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "as one device\n"
