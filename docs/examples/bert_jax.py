"""A BERT encoder as a function of its weights, with an adapter. The weights have the names that transformers uses.

Two forms give the same results: `encode` loops over the layers in Python, `encode_stacked` scans over stacked weights.
An adapter is passed as a function `update(name, x)`: what it adds to the output of the weight of that name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import Array
from safetensors.numpy import load_file

import tnadapt_jax
from tnadapt import Adapter

Weights = Mapping[str, Array]
Update = Callable[[str, Array], Array]
LAYER = "encoder.layer."
LOWEST = -3.4e38  # the attention score of padding; float32 can represent it


@dataclass(frozen=True)
class Config:
    """What the weights do not determine."""

    layers: int
    heads: int
    epsilon: float


def load_bert(folder: str | Path, prefix: str = "") -> tuple[Config, dict[str, Array]]:
    """Load the configuration and the weights, under a prefix and the names that transformers uses."""
    values = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    if values["model_type"] != "bert" or values["hidden_act"] != "gelu":
        raise ValueError(f"{folder}: expected a BERT with gelu, got {values['model_type']} with {values['hidden_act']}")
    config = Config(values["num_hidden_layers"], values["num_attention_heads"], values["layer_norm_eps"])
    arrays = load_file(Path(folder) / "model.safetensors")
    return config, {prefix + name: jnp.asarray(value) for name, value in arrays.items() if value.dtype.kind == "f"}


def nothing(name: str, x: Array) -> Array:
    """Add 0: no adapter."""
    return jnp.zeros((), x.dtype)


def dense(weights: Weights, name: str, x: Array, update: Update = nothing) -> Array:
    """Apply a linear layer: x (..., in) -> (..., out). The weight is stored as (out, in) and is not transposed."""
    product = jnp.einsum("...i,oi->...o", x, weights[f"{name}.weight"])
    return product + weights[f"{name}.bias"] + update(name, x)


def norm(weights: Weights, name: str, x: Array, config: Config) -> Array:
    """Apply LayerNorm over the last axis."""
    centered = x - x.mean(-1, keepdims=True)
    deviation = jnp.sqrt((centered**2).mean(-1, keepdims=True) + config.epsilon)
    return centered / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def embed(weights: Weights, tokens: Array, config: Config, prefix: str = "") -> Array:
    """Embed tokens (text, token) -> (text, token, hidden): words, positions, and segment 0 everywhere."""
    name = f"{prefix}embeddings."
    words = weights[f"{name}word_embeddings.weight"][tokens]
    places = weights[f"{name}position_embeddings.weight"][: tokens.shape[-1]]
    segment = weights[f"{name}token_type_embeddings.weight"][0]
    return norm(weights, f"{name}LayerNorm", words + places + segment, config)


def attend(weights: Weights, x: Array, mask: Array, config: Config, update: Update) -> Array:
    """Apply self-attention to x (text, token, hidden), with mask (text, token)."""
    split = (*x.shape[:-1], config.heads, x.shape[-1] // config.heads)
    query, key, value = (
        dense(weights, f"attention.self.{name}", x, update).reshape(split) for name in ("query", "key", "value")
    )
    scores = jnp.einsum("tqhd,tkhd->thqk", query, key) / split[-1] ** 0.5
    scores = jnp.where(mask[:, None, None, :] > 0, scores, LOWEST)
    mixed = jnp.einsum("thqk,tkhd->tqhd", jax.nn.softmax(scores, axis=-1), value)
    return dense(weights, "attention.output.dense", mixed.reshape(x.shape), update)


def layer(weights: Weights, x: Array, mask: Array, config: Config, update: Update = nothing) -> Array:
    """Apply one block. Weights are given by their names inside the block."""
    x = norm(weights, "attention.output.LayerNorm", x + attend(weights, x, mask, config, update), config)
    inner = jax.nn.gelu(dense(weights, "intermediate.dense", x, update), approximate=False)
    return norm(weights, "output.LayerNorm", x + dense(weights, "output.dense", inner, update), config)


def encode(
    weights: Weights, tokens: Array, mask: Array, config: Config, *, update: Update = nothing, prefix: str = ""
) -> Array:
    """Return states (text, token, hidden), with a loop. `update` gets whole names: "encoder.layer.0.output.dense"."""
    x = embed(weights, tokens, config, prefix)
    for number in range(config.layers):
        path = f"{prefix}{LAYER}{number}."
        own = {name.removeprefix(path): value for name, value in weights.items() if name.startswith(path)}

        def of_layer(name: str, x: Array, path: str = path) -> Array:
            return update(path + name, x)

        x = layer(own, x, mask, config, of_layer)
    return x


def stack_layers(weights: Weights, config: Config, prefix: str = "") -> dict[str, Array]:
    """Stack the weights of all layers along a new first axis, under their names inside a layer."""
    first = f"{prefix}{LAYER}0."
    names = [name.removeprefix(first) for name in weights if name.startswith(first)]
    return {
        name: jnp.stack([weights[f"{prefix}{LAYER}{number}.{name}"] for number in range(config.layers)])
        for name in names
    }


def encode_stacked(
    weights: Weights,
    stacked: Weights,
    tokens: Array,
    mask: Array,
    config: Config,
    *,
    adapted: tuple[Adapter, tnadapt_jax.Params] | None = None,
    prefix: str = "",
) -> Array:
    """Return the same with one scan over stacked weights. `weights` is used only for the embeddings."""
    adapter, params = adapted or (None, None)
    shared, per_layer = tnadapt_jax.scan_split(adapter, params) if adapter and params else ({}, {})
    kinds = {site.coordinates["kind"] for site in adapter.sites} if adapter else {}

    def body(x: Array, inputs: tuple[Weights, Weights]) -> tuple[Array, None]:
        own, factors = inputs

        def update(name: str, x: Array) -> Array:
            if adapter and name in kinds:
                return tnadapt_jax.apply_in_layer(adapter, shared, factors, name, x)
            return nothing(name, x)

        return layer(own, x, mask, config, update), None

    return jax.lax.scan(body, embed(weights, tokens, config, prefix), (stacked, per_layer))[0]


def mean_of(states: Array, mask: Array) -> Array:
    """Average the states over the unpadded tokens: (text, token, hidden) -> (text, hidden)."""
    share = mask[:, :, None].astype(states.dtype)
    return (states * share).sum(1) / jnp.maximum(share.sum(1), 1.0)
