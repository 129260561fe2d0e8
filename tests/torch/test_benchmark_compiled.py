"""The benchmark of compiled steps prints no time of a step that computes something else."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")
pytest.importorskip("transformers")

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        spec = importlib.util.spec_from_file_location("compiled_steps", FOLDER / "compiled.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    for name in ("peers", "timing"):
        sys.modules.pop(name, None)


def test_equal_gradients_are_let_through(benchmark):
    benchmark.check("LoRA", {"A": torch.ones(3)}, {"A": torch.ones(3) + 1e-6}, 1e-3)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, "gradients of {'A'}"),
        ({"A": torch.tensor([1.0, 0.99, 1.0])}, "gradient of A differs .* by 0.01 "),
        ({"A": torch.full((3,), torch.nan)}, "gradient of A differs .* by nan "),
    ],
)
def test_other_gradients_end_the_program(benchmark, found, words):
    with pytest.raises(SystemExit, match=f"^LoRA: .*{words}"):
        benchmark.check("LoRA", found, {"A": torch.ones(3)}, 1e-3)
