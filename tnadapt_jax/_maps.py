"""Maps on factors in JAX: compute a node of the network from its parameters. JAX differentiates through them."""

import jax.numpy as jnp
from jax import Array

from tnadapt.binding import unknown_map

__all__: list[str] = []


def map_factor(name: str, held: Array) -> Array:
    """Apply a map to the last axes, as the core's `map_factor` does; the gradient at a zero vector is 0.

    Raises SpecError for an unknown map.
    """
    if not name:
        return held
    if name == "rotation":
        cos, sin = jnp.cos(held / 2), jnp.sin(held / 2)
        return jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)
    one = jnp.eye(held.shape[-1], dtype=held.dtype)
    if name == "householder":
        square = jnp.sum(held * held, axis=-1)[..., None, None]
        outer = jnp.expand_dims(held, -1) * jnp.expand_dims(held, -2)
        return jnp.expand_dims(one, tuple(range(outer.ndim - 2))) - 2 * outer / jnp.where(
            square > 0, square, jnp.ones_like(square)
        )
    if name != "cayley":
        raise unknown_map(name)
    turn = held - jnp.swapaxes(held, -1, -2)
    wide = jnp.expand_dims(one, tuple(range(turn.ndim - 2)))
    made: Array = jnp.linalg.solve(wide + turn, wide - turn)
    return made
