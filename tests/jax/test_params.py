"""The two trees of arrays, and what a tree that does not fit is answered."""

import jax.numpy as jnp
import pytest

import tnadapt_jax
from tnadapt import SiteError, families, grid
from tnadapt_jax._params import check_params

ADAPTER = families.tera().bind(grid(layers=2, kinds={"q": (8, 8)}), rank=2)  # of more than six factors
PARAMS = tnadapt_jax.init(ADAPTER)
TREE, ANOTHER = max(PARAMS, key=lambda tree: len(PARAMS[tree])), jnp.ones(2)


def test_six_names_are_told():
    names = list(PARAMS[TREE])
    assert len(names) > 6
    six = ", ".join(names[1:7])
    with pytest.raises(SiteError, match=rf"{names[0]!r}, got none\.\nIt holds {six}\.$"):
        check_params(ADAPTER, PARAMS | {TREE: {name: PARAMS[TREE][name] for name in names[1:]}})
    with pytest.raises(
        SiteError, match=rf"only arrays of this adapter, got 'Z'\.\nIts arrays there are {', '.join(names[:6])}"
    ):
        check_params(ADAPTER, PARAMS | {TREE: PARAMS[TREE] | {"Z": ANOTHER}})
