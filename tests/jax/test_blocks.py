"""Weights with several sites in a pytree (fused projections, blocks, experts, tasks) agree with the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tnadapt
import tnadapt_jax
from tnadapt import SiteError, families
from tnadapt.testing import random_params

WEIGHTS = {
    "layers": [
        {"qkv": {"kernel": jnp.ones((4, 12))}, "up": {"kernel": jnp.ones((4, 16))}, "ex": jnp.ones((3, 4, 8))}
        for _ in range(2)
    ]
}
FUSED, BLOCKS = {"qkv": {"q": 8, "k": 2, "v": 2}}, {"up": (4, 2)}


def bound(spec, leaves, **words):
    adapter = spec.bind(leaves.sites, rank=2, seed=0, **words)
    numbers = random_params(adapter, np.random.default_rng(0))
    params = tnadapt_jax.init(adapter)
    moved = {tree: {name: jnp.asarray(numbers[name], jnp.float32) for name in part} for tree, part in params.items()}
    return adapter, moved, numbers


def test_updates_outputs_and_merged_weights_agree_with_the_reference():
    leaves = tnadapt_jax.find_sites(WEIGHTS, target=["qkv", "up"], layout="linen", fused=FUSED, blocks=BLOCKS)
    assert len(leaves.sites) == 2 * (3 + 8)
    adapter, params, numbers = bound(families.lotr(), leaves)
    merged = jax.jit(lambda p, w: tnadapt_jax.merge(adapter, p, w, leaves))(params, WEIGHTS)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((5, 4)), jnp.float32)
    for layer in range(2):
        for name in ("qkv", "up"):
            path = f"layers.{layer}.{name}"
            wanted = tnadapt.delta(adapter, numbers, path)
            close = {"rtol": 0, "atol": 1e-5 * np.abs(wanted).max()}
            np.testing.assert_allclose(tnadapt_jax.delta(adapter, params, path), wanted, **close)
            np.testing.assert_allclose(merged["layers"][layer][name]["kernel"], 1 + wanted.T, rtol=0, atol=1e-5)
            added = jax.jit(lambda p, x, path=path: tnadapt_jax.apply(adapter, p, path, x))(params, x)
            np.testing.assert_allclose(added, np.asarray(x) @ wanted.T, rtol=0, atol=1e-4)
    assert merged["layers"][0]["ex"] is WEIGHTS["layers"][0]["ex"] or (merged["layers"][0]["ex"] == 1).all()


def test_one_part_of_a_weight_alone():
    leaves = tnadapt_jax.find_sites(WEIGHTS, target=["qkv"], layout="linen", fused=FUSED)
    adapter = families.lora().bind(leaves.sites[1:2], rank=2)
    numbers = random_params(adapter, np.random.default_rng(0))
    params = {"trainable": {name: jnp.asarray(value, jnp.float32) for name, value in numbers.items()}, "frozen": {}}
    x = jnp.ones((3, 4))
    found = tnadapt_jax.apply(adapter, params, "layers.0.qkv", x)
    wanted = tnadapt.delta(adapter, numbers, "layers.0.qkv")
    np.testing.assert_allclose(found, np.asarray(x) @ wanted.T, rtol=0, atol=1e-4)
    assert not found[:, :8].any()


def test_every_expert_of_a_leaf_is_a_site():
    leaves = tnadapt_jax.find_sites(WEIGHTS, target=["ex"], layout="expert in out")
    assert [site.path for site in leaves.sites[:3]] == [f"layers.0.ex[{n}]" for n in range(3)]
    assert leaves.sites[0].shape == (8, 4)
    adapter, params, numbers = bound(families.lotr(over="layer expert"), leaves)
    merged = tnadapt_jax.merge(adapter, params, WEIGHTS, leaves)
    wanted = tnadapt.delta(adapter, numbers, "layers.1.ex")
    np.testing.assert_allclose(merged["layers"][1]["ex"], 1 + wanted.transpose(0, 2, 1), rtol=0, atol=1e-5)
    with pytest.raises(
        SiteError,
        match=r"layers\.1\.ex: expected a weight of 2 axes, got shape \(3, 8, 4\)\.\nIts blocks share no x:",
    ):
        tnadapt_jax.apply(adapter, params, "layers.1.ex", jnp.ones((2, 4)))


def test_experts_of_stacked_layers_are_merged():
    weights = {"ex": jnp.ones((2, 3, 4, 8))}
    leaves = tnadapt_jax.find_sites(weights, target=["ex"], layout="expert in out", layer_axis=0)
    adapter, params, numbers = bound(families.lora(), leaves)
    merged = tnadapt_jax.merge(adapter, params, weights, leaves)
    for layer in range(2):
        wanted = tnadapt.delta(adapter, numbers, f"ex[{layer}]")
        np.testing.assert_allclose(merged["ex"][layer], 1 + wanted.transpose(0, 2, 1), rtol=0, atol=1e-5)


def test_each_task_has_its_own_update():
    leaves = tnadapt_jax.find_sites(WEIGHTS, target=["qkv"], layout="linen", tasks=["seg", "depth"])
    adapter, params, numbers = bound(families.mtlora_tasks(), leaves)
    for task in ("seg", "depth"):
        merged = tnadapt_jax.merge(adapter, params, WEIGHTS, leaves, task=task)
        wanted = tnadapt.delta(adapter, numbers, f"layers.0.qkv[{task}]")
        np.testing.assert_allclose(merged["layers"][0]["qkv"]["kernel"], 1 + wanted.T, rtol=0, atol=1e-5)
    with pytest.raises(SiteError, match=r"task: expected a task of this adapter, got None\.\nIts tasks are seg, depth"):
        tnadapt_jax.merge(adapter, params, WEIGHTS, leaves)


def test_blocks_can_be_applied_in_a_scan_over_layers():
    leaves = tnadapt_jax.find_sites(WEIGHTS, target=["up"], layout="linen", blocks={"up": (4, 1)})
    adapter, params, numbers = bound(families.lotr(), leaves)
    shared, per_layer = tnadapt_jax.scan_split(adapter, params)
    x = jnp.ones((2, 4))

    def body(carry, layer):
        parts = [tnadapt_jax.apply_in_layer(adapter, shared, layer, f"up.{n}", x) for n in range(4)]
        return carry, jnp.concatenate(parts, axis=-1)

    _, found = jax.lax.scan(body, 0.0, per_layer)
    for layer in range(2):
        wanted = np.asarray(x) @ tnadapt.delta(adapter, numbers, f"layers.{layer}.up").T
        np.testing.assert_allclose(found[layer], wanted, rtol=0, atol=1e-4)


def test_apply_rejects_an_x_of_another_length():
    leaves = tnadapt_jax.find_sites(WEIGHTS, target=["up"], layout="linen", blocks=BLOCKS)
    adapter, params, _ = bound(families.lora(), leaves)
    with pytest.raises(SiteError, match=r"layers\.0\.up: expected x to end in the in axes \(4,\), got shape"):
        tnadapt_jax.apply(adapter, params, "layers.0.up", jnp.ones((2, 5)))
