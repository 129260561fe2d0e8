"""The modules of benchmarks/leaderboard, for the tests of this folder."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "leaderboard"
NAMES = ("records", "page", "runs", "methods", "tasks", "digits", "language", "sentences_task", "glyphs_task")


@pytest.fixture
def modules(monkeypatch):
    """Make the modules importable by their plain names, and forget them afterwards: others have such names, too."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in NAMES:
        sys.modules.pop(name, None)
