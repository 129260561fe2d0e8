"""LoHa and LoKr are the products they are named after, and split axes as PEFT does."""

import numpy as np
import pytest

from tnadapt import count, delta, families, grid, init

SITES = grid(layers=1, kinds={"q": (12, 8)})


def params_of(adapter):
    random = np.random.default_rng(0)
    return {name: random.standard_normal(value.shape) for name, value in init(adapter).items()}


def test_loha_is_an_entrywise_product():
    adapter = families.loha(alpha=6).bind(SITES, rank={"p": 3, "q": 2})
    p = params_of(adapter)
    wanted = 2.0 * (p["A1"] @ p["B1"]) * (p["A2"] @ p["B2"])
    np.testing.assert_allclose(delta(adapter, p, SITES[0]), wanted, rtol=1e-12)


def test_lokr_is_a_kronecker_product():
    adapter = families.lokr(alpha=6).bind(SITES, rank=3)
    p = params_of(adapter)
    np.testing.assert_allclose(delta(adapter, p, SITES[0]), 2.0 * np.kron(p["C"], p["A"] @ p["B"]), rtol=1e-12)


def test_lokr_with_a_single_second_factor():
    adapter = families.lokr(alpha=6, low_rank=False).bind(SITES)
    p = params_of(adapter)
    np.testing.assert_allclose(delta(adapter, p, SITES[0]), 6.0 * np.kron(p["C"], p["A"]), rtol=1e-12)


@pytest.mark.parametrize(("size", "parts"), [(768, (24, 32)), (1024, (32, 32)), (4096, (64, 64)), (11008, (86, 128))])
def test_lokr_splits_as_peft_does(size, parts):
    """The figures of PEFT's factorization(dim, -1), methods.md 3.8."""
    network = families.lokr().bind(grid(layers=1, kinds={"q": (size, size)}), rank=8).networks[0]
    assert (network.sizes["o1"], network.sizes["o2"]) == parts
    assert count(families.lokr().bind(grid(layers=1, kinds={"q": (size, size)}), rank=8)).trainable == (
        parts[0] ** 2 + 8 * 2 * parts[1]
    )
