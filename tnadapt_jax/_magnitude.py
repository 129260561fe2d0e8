"""Magnitudes: rows of the weight with its update get their lengths from trained numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array, lax

from tnadapt.binding import Network, row_products
from tnadapt_jax._explicit import dot, merge_axes
from tnadapt_jax._lower import make_delta, wide_of

__all__: list[str] = []


@dataclass(frozen=True)
class Rows:
    """What a magnitude reads at one site: its lengths (out), and the host's weight (out axis first)."""

    lengths: Array
    weight: Array


def scale_output(network: Network, factors: Sequence[Array], rows: Rows, product: Array, update: Array) -> Array:
    """Return m / |W + dW| (W x + dW x) - W x from W x and dW x, each (..., out), in the dtype of dW x."""
    ratios = _ratios(network, factors, rows)
    wide = product.astype(ratios.dtype)
    ratios = jnp.broadcast_to(ratios.reshape(*[1] * (wide.ndim - 1), -1), wide.shape)
    return (ratios * (wide + update.astype(ratios.dtype)) - wide).astype(update.dtype)


def scale_delta(rows: Rows, update: Array) -> Array:
    """Return m V / |V| - W for V = W + dW, in the dtype of dW. The length |V| gets no gradient."""
    weight = rows.weight.reshape(update.shape).astype(update.dtype)
    whole = weight + update
    norms = jnp.linalg.norm(lax.stop_gradient(whole).reshape(len(whole), -1), axis=1)
    ratios = _divided(rows.lengths.reshape(-1).astype(update.dtype), norms)
    return ratios.reshape(-1, *[1] * (whole.ndim - 1)) * whole - weight


def product_of(rows: Rows, x: Array) -> Array:
    """Return x times the host's weight: x (..., in axes) -> (..., out)."""
    weight = rows.weight.reshape(len(rows.weight), -1).astype(x.dtype)
    lead = x.ndim - rows.weight.ndim + 1
    flat = merge_axes(x, [*[1] * lead, x.ndim - lead])
    return dot(flat, weight, (((lead,), (1,)), ((), ())))


def _ratios(network: Network, factors: Sequence[Array], rows: Rows) -> Array:
    """Return m / |W + dW| for each row (out), in float32 or wider. The length gets no gradient."""
    wide = wide_of(*factors)
    parts = [lax.stop_gradient(value).astype(wide) for value in factors]
    weight = lax.stop_gradient(rows.weight).astype(wide)
    found = row_products(network)
    if found.pays:
        known = dict(zip(network.nodes, parts, strict=True))
        known["(host)"] = weight.reshape([network.sizes[mode] for mode in (*network.out_modes, *network.in_modes)])
        square = jnp.sum(jnp.square(weight.reshape(len(weight), -1)), axis=1)
        for one in (found.cross, found.square):
            values = [known[found.source(node)] for node in one.nodes]
            square = square + make_delta(one, values, precision=lax.Precision.HIGHEST).reshape(-1)
        norms = jnp.sqrt(jnp.maximum(square, 0))
    else:
        update = make_delta(network, parts, precision=lax.Precision.HIGHEST)
        norms = jnp.linalg.norm((weight.reshape(update.shape) + update).reshape(len(update), -1), axis=1)
    return _divided(rows.lengths.reshape(-1).astype(wide), norms)


def _divided(lengths: Array, norms: Array) -> Array:
    """Return lengths over norms; a row of zeros stays one."""
    return lengths / jnp.where(norms > 0, norms, jnp.ones_like(norms))
