"""Settings for all tests: no access to the Hugging Face hub, hypothesis, XLA's optimizer, the collection of garbage."""

import gc
import os
from collections.abc import Generator
from importlib.metadata import version
from importlib.util import find_spec

import pytest
from hypothesis import Phase, settings

os.environ["HF_HUB_OFFLINE"] = "1"  # set before any test imports transformers

PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or "dev"

# Tests of the JAX binding spend most of their time in XLA's optimizer, on small programs that run once. Without it they
# take a quarter of the time. `make laws` runs the same tests with the compiler as users have it.
if PROFILE != "laws":
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    if find_spec("jax") and version("jax").startswith("0.10."):  # XLA ends the process for a flag that it lacks
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false "
            "--xla_cpu_parallel_codegen_split_count=1"
        ).strip()

settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=15, derandomize=True)  # CI has 15 minutes for all tests
settings.register_profile("laws", deadline=None, max_examples=1000)
settings.register_profile(
    "mutants", deadline=None, max_examples=10, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(PROFILE)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage while tests are collected, and never look again at what was made then.

    Thousands of tests and the modules of all libraries live to the end. To walk through them again and again takes a
    fifth of the time of their collection, and a part of each test's.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
