"""Run by test_sharding in its own process, with four devices in a mesh of (2, 2): jax fixes their number on start."""

import os
import re

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import tnadapt_jax
from tnadapt import families

COLLECTIVE = re.compile(r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)")
OUT, IN = 16, 8


def main() -> None:
    assert len(jax.devices()) == 4

    keys = iter(jax.random.split(jax.random.key(0), 99))
    zeros = jnp.zeros(OUT)
    weights = {f"layers.{n}": {"kernel": jax.random.normal(next(keys), (IN, OUT)), "bias": zeros} for n in (0, 1)}
    leaves = tnadapt_jax.find_sites(weights, target=r"layers\.\d", layout="in out")
    x = jax.random.normal(next(keys), (4, 6, IN))
    for family in (families.lora, families.lotr, families.vera):
        adapter = family().bind(leaves.sites, rank=2)
        params = tnadapt_jax.init(adapter)
        trained = {n: jax.random.normal(next(keys), value.shape) for n, value in params["trainable"].items()}
        params = params | {"trainable": trained}
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(kind, kind))
            merge_stays(adapter, params, weights, leaves, mesh)
            values_stay(adapter, params, x, mesh)
    print("as one device")


def at(mesh, *axes):
    return NamedSharding(mesh, PartitionSpec(*axes))


def merge_stays(adapter, params, weights, leaves, mesh) -> None:
    """Check that merged weights are the same, keep their shardings, and need no collective in the compiled text."""
    wanted = tnadapt_jax.merge(adapter, params, weights, leaves)
    shardings = {name: {"kernel": at(mesh, "fsdp", "tensor"), "bias": at(mesh, "tensor")} for name in weights}
    split = jax.device_put(weights, shardings)
    whole = jax.device_put(params, at(mesh))
    merge = jax.jit(lambda p, w: tnadapt_jax.merge(adapter, p, w, leaves), out_shardings=shardings)
    text = merge.lower(whole, split).compile().as_text()
    assert not COLLECTIVE.search(text), COLLECTIVE.search(text)
    eager = tnadapt_jax.merge(adapter, whole, split, leaves)
    for merged in (merge(whole, split), eager):
        for found, by_one, sharded in zip(*map(jax.tree.leaves, (merged, wanted, split)), strict=True):
            np.testing.assert_allclose(found, by_one, rtol=1e-5, atol=1e-5)
            assert found.sharding.is_equivalent_to(sharded.sharding, found.ndim)


def values_stay(adapter, params, x, mesh) -> None:
    """Check outputs and gradients with sharded x and factors, and in shard_map over tokens, against one device."""
    site = adapter.sites[1]

    def loss(trained, frozen, x):
        y = tnadapt_jax.apply(adapter, {"trainable": trained, "frozen": frozen}, site, x)
        return (y**2).sum(), y

    step = jax.jit(jax.grad(loss, has_aux=True))
    wanted = step(params["trainable"], params["frozen"], x)

    is_auto = mesh.axis_types[0] == AxisType.Auto  # with explicit shardings the user must avoid conflicts

    def spread(value):
        """Shard a factor along its longest axis if that is even."""
        axes = [None] * value.ndim
        if is_auto and value.ndim and max(value.shape) % 2 == 0:
            axes[value.shape.index(max(value.shape))] = "tensor"
        return jax.device_put(value, at(mesh, *axes))

    found = step(
        jax.tree.map(spread, params["trainable"]),
        jax.tree.map(spread, params["frozen"]),
        jax.device_put(x, at(mesh, "fsdp", "tensor" if is_auto else None, None)),
    )
    by_tokens = PartitionSpec("fsdp", "tensor")
    mapped = jax.jit(
        jax.shard_map(
            lambda params, x: tnadapt_jax.apply(adapter, params, site, x),
            mesh=mesh,
            in_specs=(PartitionSpec(), by_tokens),
            out_specs=by_tokens,
        )
    )
    whole, split = jax.device_put(params, at(mesh)), jax.device_put(x, at(mesh, "fsdp", "tensor", None))
    np.testing.assert_allclose(mapped(whole, split), wanted[1], rtol=1e-5, atol=1e-5)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * float(jnp.abs(other).max()))


if __name__ == "__main__":
    main()
