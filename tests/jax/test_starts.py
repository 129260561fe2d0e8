"""Starting values that are read from a pytree of weights, and their files."""

import jax.numpy as jnp
import numpy as np
import pytest

import tnadapt
import tnadapt_jax
from tnadapt import SiteError, families

READ = [families.pissa(), families.lora_xs(start="svd"), families.lora_pt(), families.lotr(start="svd")]


@pytest.fixture
def weights():
    random = np.random.default_rng(0)
    return {"layers": [{"q": {"kernel": jnp.asarray(random.standard_normal((8, 12)), jnp.float32)}} for _ in range(3)]}


@pytest.mark.parametrize("spec", READ, ids=lambda spec: spec.name)
def test_the_update_starts_at_zero_and_a_file_restores_it(spec, weights, tmp_path):
    leaves = tnadapt_jax.find_sites(weights, target=["q"], layout="linen")
    adapter = spec.bind(leaves.sites, rank=2)
    params = tnadapt_jax.init(adapter, weights=leaves.read(weights))
    path = "layers.1.q"
    assert not tnadapt_jax.delta(adapter, params, path).any()
    moved = {
        "trainable": {name: value + 0.5 for name, value in params["trainable"].items()},
        "frozen": params["frozen"],
    }
    flat = {name: np.asarray(value) for tree in moved.values() for name, value in tree.items()}
    wanted = tnadapt.delta(adapter, flat, path)
    np.testing.assert_allclose(tnadapt_jax.delta(adapter, moved, path), wanted, rtol=0, atol=1e-4)
    tnadapt_jax.save(adapter, moved, tmp_path / "a")
    again, loaded = tnadapt_jax.load(tmp_path / "a")
    assert loaded["frozen"].keys() == params["frozen"].keys()
    assert (tnadapt_jax.delta(again, loaded, path) == tnadapt_jax.delta(adapter, moved, path)).all()
    assert set(tnadapt.load(tmp_path / "a")[1]) == set(adapter.slots)


def test_a_stack_of_layers_is_read_layer_by_layer():
    random = np.random.default_rng(0)
    weights = {"q": jnp.asarray(random.standard_normal((3, 8, 12)), jnp.float32)}
    leaves = tnadapt_jax.find_sites(weights, target=["q"], layout="linen", layer_axis=0)
    found = leaves.read(weights)
    assert list(found) == ["q[0]", "q[1]", "q[2]"]
    assert np.array_equal(found["q[2]"], np.asarray(weights["q"][2]).T)


def test_init_requires_the_weights_of_the_host(weights):
    leaves = tnadapt_jax.find_sites(weights, target=["q"], layout="linen")
    with pytest.raises(SiteError, match=r"expected the host's weights to read the start of .* from, got none\.\nPass"):
        tnadapt_jax.init(families.pissa().bind(leaves.sites, rank=2))
