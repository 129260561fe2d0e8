"""The benchmark compares equal computations, and a scan over activations takes the memory that the docs state."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")  # the timing module of the benchmarks imports it

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name):
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop(name, None)
    return module


@pytest.fixture(scope="module")
def benchmark():
    return load("jax_ops")


def test_both_sides_of_the_benchmark_compute_the_same_for_every_family(benchmark, monkeypatch):
    import jax

    import tnadapt

    assert set(benchmark.CASES) == set(benchmark.HANDS) <= set(tnadapt.families.__all__)
    monkeypatch.setattr(benchmark, "WIDTH", 64)
    cases = benchmark.CASES | {"lorta": {"rank": 8, "sizes": {"head": 4}}}
    monkeypatch.setattr(benchmark, "CASES", cases)
    with jax.numpy_rank_promotion("allow"):  # the handwritten side is written as users write it
        for family in cases:
            benchmark.contestants(family, 8, "float32")  # raises if the two differ


def test_applying_in_a_scan_takes_at_most_a_third_of_the_memory_of_dense_updates(benchmark):
    by_activations, by_weights = benchmark.scan_memory()
    assert by_activations["temporary bytes"] <= by_weights["temporary bytes"] / 3


@pytest.mark.parametrize("family", ["lora", "lotr", "vera"])
def test_adapt_takes_the_products_and_the_text_of_updates_by_hand(family):
    """At the sizes of Llama 3.1 8B; nothing is computed."""
    pytest.importorskip("flax")  # the benchmark beside other libraries imports it
    found = load("jax_adapt")
    figures = found.measure(found.Model(), family, memory=False)
    assert figures["adapt"].flops == figures["hand"].flops
    assert figures["adapt"].text <= 1.01 * figures["hand"].text


def test_adapt_takes_the_memory_of_updates_by_hand():
    pytest.importorskip("flax")
    found = load("jax_adapt")
    small = found.Model(layers=4, width=128, inner=256, heads=4, key_heads=2, tokens=64)
    figures = found.measure(small, "lotr", memory=True)
    assert figures["adapt"].memory <= 1.02 * figures["hand"].memory
