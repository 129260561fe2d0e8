"""Run by test_adapt_arguments in its own process, with four devices: a shard_map in the function, and around it."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

import tnadapt_jax
from tnadapt import families

WHOLE, SPLIT = PartitionSpec(), PartitionSpec("tokens")


def model(weights, x):
    return jnp.tanh(x @ weights["a"]) @ weights["b"]


def main() -> None:
    keys = iter(jax.random.split(jax.random.key(0), 9))
    weights = {name: jax.random.normal(next(keys), (8, 8)) / 3 for name in "ab"}
    leaves = tnadapt_jax.find_sites(weights, target=["a", "b"], layout="in out")
    adapter = families.lotr().bind(leaves.sites, rank=2)
    params = tnadapt_jax.init(adapter)
    trained = {name: jax.random.normal(next(keys), value.shape) / 4 for name, value in params["trainable"].items()}
    params, x = params | {"trainable": trained}, jax.random.normal(next(keys), (8, 8))
    mesh = jax.make_mesh((4,), ("tokens",), axis_types=(jax.sharding.AxisType.Auto,))
    inside = jax.shard_map(model, mesh=mesh, in_specs=(WHOLE, SPLIT), out_specs=SPLIT)
    around = jax.shard_map(
        tnadapt_jax.adapt(model, adapter, leaves), mesh=mesh, in_specs=(WHOLE, WHOLE, SPLIT), out_specs=SPLIT
    )
    said = tnadapt_jax.explain(inside, adapter, leaves)(params, weights, x)
    assert str(said) == "a  dW: shard_map\nb  dW: shard_map", said

    def loss(run):
        return lambda params: jnp.sum(jnp.sin(run(params, weights, x)))

    runs = [tnadapt_jax.adapt(inside, adapter, leaves), around]
    runs.append(lambda params, weights, x: model(tnadapt_jax.merge(adapter, params, weights, leaves), x))
    *found, wanted = (jax.jit(jax.value_and_grad(loss(run)))(params) for run in runs)
    for one in found:
        for ours, other in zip(jax.tree.leaves(one), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-4)
    print("as one device")


if __name__ == "__main__":
    main()
