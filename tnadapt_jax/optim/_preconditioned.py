"""Gradients divided by the Gram matrix of a factor's environment, as a transformation in front of any optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from tnadapt import Adapter, SiteError
from tnadapt.binding import COUNTS, Environment, Part, answers, environments, expect_adapter
from tnadapt_jax._lower import make_delta, wide_of
from tnadapt_jax._maps import map_factor
from tnadapt_jax.optim._trained import across, arrays, expect_number, expect_trained, matrices, product, stacked

__all__ = ["Preconditioned"]

NOISE = 16  # rounding errors of a Gram matrix of n rows are below this many times n eps
Arrays = Mapping[str, Array]


@answers(SiteError)
def Preconditioned(adapter: Adapter, *, damping: float = 1e-6) -> optax.GradientTransformationExtraArgs:
    """Return a transformation of gradients: (E + damping)^-1 grad on the bonds of each factor.

    E is the Gram matrix of the factor's environment: for LoRA B^T B for A and A A^T for B (Zhang and Pilanci 2024,
    arXiv:2402.02347). Put it in front of an optimizer: `optax.chain(Preconditioned(adapter), optax.sgd(1e-2))`. With
    plain SGD and no damping, a step changes the update in the same way however it is split into factors.

    The gradients of trained arrays that are in no term (magnitudes) stay. The arithmetic is in float32 or wider.
    `update` takes the trained factors as params. If environments have frozen factors, pass these too:
    `update(grads, state, params["trainable"], frozen=params["frozen"])`.

    Args:
        adapter: a spec bound to sites.
        damping: is added to each Gram matrix. With 0, directions that have no effect on the update stand still.

    Raises:
        PlanError: a factor has no Gram matrix, with the reasons: see `tnadapt.binding.environments`.
        SiteError: a damping below 0. `update` raises it for trees that do not fit the adapter.
    """
    where = "Preconditioned"
    expect_adapter(adapter, where)
    damp = expect_number(damping, where, "damping")
    known = environments(adapter)

    def init(params: optax.Params) -> optax.OptState:
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        frozen: Arrays | None = None,
        **others: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        grads = expect_trained(adapter, where, updates, "gradients")
        held = {**(frozen or {}), **expect_trained(adapter, where, params, "values")}
        return _preconditioned(known, grads, held, damp), state

    return optax.GradientTransformationExtraArgs(init, update)


def _preconditioned(
    known: Mapping[str, tuple[Environment, Mapping[str, Part]]], grads: Arrays, held: Arrays, damping: float
) -> dict[str, Array]:
    """Return the preconditioned gradients by name. Arrays of equal environments are treated together."""
    dtype = wide_of(*grads.values())
    alike: dict[Environment, list[str]] = {}
    for name in (name for name in grads if name in known):
        alike.setdefault(known[name][0], []).append(name)
    found: dict[str, Array] = {}
    for environment, names in alike.items():
        each = [_grams(environment, known[name][1], held, dtype) for name in names]
        grams = [jnp.stack(copies) for copies in zip(*each, strict=True)]
        made = _solve(environment, grams, stacked((grads[name] for name in names), dtype), damping)
        found |= {name: lax.convert_element_type(made[n], grads[name].dtype) for n, name in enumerate(names)}
    return {**grads, **found}


def _grams(environment: Environment, parts: Mapping[str, Part], held: Arrays, dtype: Any) -> list[Array]:
    """Return the Gram matrices of the pieces of an environment. shape: (batch, rows, rows)."""
    found = []
    for piece in environment.pieces:
        nodes = [
            jnp.array(environment.counts(), dtype) if source == COUNTS else _node(parts[source], held, dtype)
            for source in piece.sources
        ]
        found.append(make_delta(piece.network, nodes, precision=lax.Precision.HIGHEST))
    return found


def _node(part: Part, held: Arrays, dtype: Any) -> Array:
    if part.name not in held:
        raise SiteError(
            f"Preconditioned: expected the frozen factor {part.name!r}, got none.\n"
            'Pass it: update(grads, state, params["trainable"], frozen=params["frozen"]).'
        )
    value = lax.convert_element_type(held[part.name], dtype)
    return map_factor(part.factor.map, value[part.stack])


def _solve(environment: Environment, grams: Sequence[Array], grads: Array, damping: float) -> Array:
    """Return (E + damping)^-1 grad for several arrays at once, by the eigenvectors of each piece of E.

    Without damping, directions in which E is 0 up to rounding get 0, as by a pseudoinverse.
    """
    strength = jnp.full_like(grads, environment.times)
    bases = []
    for piece, gram in zip(environment.pieces, grams, strict=True):
        fold = piece.unfolding
        if gram.shape[-1] == 1:  # a number for each index: nothing to turn
            strength = arrays(matrices(strength, fold) * gram, fold)
            continue
        values, basis = jnp.linalg.eigh(gram)
        noise = 0.0 if damping else NOISE * values.shape[-1] * float(np.finfo(values.dtype).eps)
        values = jnp.where(values > noise * values[..., -1:], values, jnp.zeros_like(values))
        strength = arrays(matrices(strength, fold) * values[..., None], fold)
        grads = arrays(product(across(basis), matrices(grads, fold)), fold)
        bases.append((fold, basis))
    divisor = strength + damping
    is_seen = divisor > 0
    grads = jnp.where(is_seen, grads / jnp.where(is_seen, divisor, jnp.ones_like(divisor)), jnp.zeros_like(grads))
    for fold, basis in bases:
        grads = arrays(product(basis, matrices(grads, fold)), fold)
    return grads
