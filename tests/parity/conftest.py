"""One thread for torch, since tests run in parallel and sums must keep their order."""

import importlib.util

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
