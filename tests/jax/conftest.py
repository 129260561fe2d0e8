"""What holds in every test of the binding: no implicit promotion of dtypes or ranks."""

import importlib.util

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("jax") else ["*"]


@pytest.fixture(autouse=True)
def strict():
    import jax

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
