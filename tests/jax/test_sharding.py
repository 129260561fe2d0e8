"""Four devices give the results of one, and merging needs no communication between them."""

import subprocess
import sys
from pathlib import Path

WORKER = Path(__file__).with_name("worker.py")


def test_a_mesh_of_two_by_two_devices_gives_the_results_of_one():
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import runpy; runpy.run_path({str(WORKER)!r}, run_name='__main__')"],
        cwd=WORKER.parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "as one device\n"
