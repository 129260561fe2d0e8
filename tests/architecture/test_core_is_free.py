"""Importing the core does not import a framework, as checked in a fresh interpreter."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FREE, GUILTY = 10, 11  # not 0 and 1, since a failed import exits with 1 and must not count as a result

PROBE = """\
import sys, {first}, tnadapt
sys.exit({guilty} if {{"torch", "jax", "flax", "transformers"}} & sys.modules.keys() else {free})
"""


@pytest.mark.skipif(not (ROOT / "tnadapt/__init__.py").exists(), reason="tnadapt is not written yet")
@pytest.mark.parametrize(
    ("first", "verdict"),
    [("math", FREE), ("torch", GUILTY), ("jax", GUILTY)],  # the last two prove that the test can fail
)
def test_importing_the_core_does_not_import_a_framework(first, verdict):
    if importlib.util.find_spec(first) is None:
        pytest.skip(f"{first} is not installed")
    probe = PROBE.format(first=first, free=FREE, guilty=GUILTY)
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == verdict, done.stderr
