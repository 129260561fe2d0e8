"""The modules of benchmarks/, for the tests of this folder."""

from pathlib import Path

import pytest

from tests.modules import forget

pytest.importorskip("torch")
FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """Make the modules importable by their plain names, and forget them afterwards: others have such names, too."""
    forget()
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    forget()
