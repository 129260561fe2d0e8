"""Skip these tests unless torch is installed; each way to quantize is skipped where its own package is missing."""

import importlib.util

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["*"]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def every_cpu_alike():
    """Keep bitsandbytes from repacking 4-bit weights for inference, which it does on some CPUs only."""
    if not importlib.util.find_spec("bitsandbytes"):
        yield
        return
    from bitsandbytes.nn import modules

    known, modules.has_avx512bf16 = modules.has_avx512bf16, lambda: False
    yield
    modules.has_avx512bf16 = known
