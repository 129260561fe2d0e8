"""Layers that read the same x: the compiler multiplies x by a factor that they share once, in both passes."""

import re

import jax
import jax.numpy as jnp

import tnadapt_jax
from tnadapt import AdapterSpec, families

WIDTH, OUT, TOKENS = 64, 48, 32
NAMES = ("q", "k", "v")


def dots_of(spec: AdapterSpec, *, is_one: bool) -> int:
    """The products of the compiled value and gradients of three layers that read one x, or each its own."""
    weights = {name: {"kernel": jnp.full((WIDTH, OUT), 0.1)} for name in NAMES}
    leaves = tnadapt_jax.find_sites(weights, target=list(NAMES), layout="linen")
    adapter = spec.bind(leaves.sites, rank=4, seed=0)
    params = tnadapt_jax.init(adapter)

    def layers(weights, x):
        outputs = [x[0 if is_one else at] @ weights[name]["kernel"] for at, name in enumerate(NAMES)]
        return sum(jnp.tanh(output).sum() for output in outputs)

    adapted = tnadapt_jax.adapt(layers, adapter, leaves)

    def loss(trainable, x):
        return adapted({"trainable": trainable, "frozen": params["frozen"]}, weights, x)

    x = [jnp.full((TOKENS, WIDTH), float(number)) for number in range(len(NAMES))]
    text = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(params["trainable"], x).compile().as_text()
    return len(re.findall(r" dot\(", text))


def saved(spec: AdapterSpec) -> int:
    """How many products fewer three layers take that read one x, than if each reads its own."""
    return dots_of(spec, is_one=False) - dots_of(spec, is_one=True)


def test_a_shared_factor_is_multiplied_once():
    """That is two products fewer than with an A for each layer, where the compiler may merge others."""
    apart = saved(families.lora())
    assert [saved(family()) - apart for family in (families.vera, families.lotr)] == [2, 2]
