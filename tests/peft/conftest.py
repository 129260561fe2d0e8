"""Skip these tests unless PEFT, transformers and accelerate are installed; give torch one thread, as in tests/torch."""

import importlib.util

import pytest

NEEDED = ("torch", "peft", "transformers", "accelerate")
collect_ignore_glob = [] if all(map(importlib.util.find_spec, NEEDED)) else ["*"]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)
