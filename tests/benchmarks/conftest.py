"""Make the modules of benchmarks/ importable for the tests of this folder; give torch one thread, as in tests/torch."""

import importlib.util
from pathlib import Path

import pytest

from tests.modules import forget

FOLDER = Path(__file__).parents[2] / "benchmarks"
collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["*"]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def modules():
    """Make the modules importable by their plain names, and forget them afterwards: others have such names, too."""
    forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield
    forget()
