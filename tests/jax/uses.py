"""What can happen to a weight besides a plain product: each use is right, and `explain` says what was done.

Each entry has the function (weights, x), the text of `explain` for the weights "a" and "b", and whether these are
stacks of LAYERS matrices; else each is one matrix (in, out).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from tests.jax.functions import D

LAYERS, TOKENS = 3, 5
ONCE, TURNED, NEVER = "activations x1", "activations (transposed) x1", "never read"
tanh = jnp.tanh


@dataclass(frozen=True)
class Use:
    call: Callable[[Any, jax.Array], Any]
    a: str = ONCE
    b: str = ONCE
    is_stack: bool = False
    has_gradient: bool = True


def layer(x: jax.Array, own: Any) -> tuple[jax.Array, None]:
    return tanh(x @ own["a"]) @ own["b"], None


def scan(w: Any, x: jax.Array) -> jax.Array:
    return lax.scan(layer, x, w)[0]


def carried(w: Any, x: jax.Array) -> jax.Array:
    def body(carry: Any, _: None) -> Any:
        x, a, b = carry
        return (tanh(x @ a), b, a), None

    return lax.scan(body, (x, w["a"], w["b"]), None, length=3)[0][0]


def remat_in_scan_in_remat(w: Any, x: jax.Array) -> jax.Array:
    policy = jax.checkpoint_policies.save_only_these_names("h")

    def body(x: jax.Array, own: Any) -> Any:
        return tanh(checkpoint_name(x @ checkpoint_name(own["a"], "w"), "h")) @ own["b"], None

    body = jax.checkpoint(body, policy=policy)
    return jax.checkpoint(lambda w, x: lax.scan(body, x, w)[0], policy=policy)(w, x)


def while_of(w: Any, x: jax.Array) -> jax.Array:
    def body(carry: Any) -> Any:
        n, x = carry
        return n + 1, tanh(x @ w["a"][n]) @ w["b"][n]

    return lax.while_loop(lambda carry: carry[0] < LAYERS, body, (0, x))[1]


def while_on(w: Any, x: jax.Array) -> jax.Array:
    """A loop whose condition reads a weight."""
    return lax.while_loop(lambda x: jnp.sum(jnp.abs(x @ w["a"])) < 30, lambda x: x + jnp.abs(x @ w["b"]), x)


def conv(w: Any, x: jax.Array) -> jax.Array:
    numbers = ("NWC", "WIO", "NWC")
    made = lax.conv_general_dilated(x[None], w["a"], (1,), "SAME", dimension_numbers=numbers)
    return made[0] @ w["b"][1]


def hands_on(w: Any, x: jax.Array) -> jax.Array:
    """A scan that returns its slices, as flax does: it is the same stack afterwards."""
    x, again = lax.scan(lambda x, own: (layer(x, own)[0], own), x, w)
    return x @ again["a"][0]


def of_gradients(w: Any, x: jax.Array) -> Any:
    return jax.grad(lambda x: jnp.sum(tanh(x @ w["a"]) @ w["b"]))(x)


USES: dict[str, Use] = {
    # loops
    "carried by a scan": Use(carried, "dW: carried by a scan", "dW: carried by a scan"),
    "scan of no stack": Use(lambda w, x: lax.scan(lambda x, _: layer(x, w), x, None, length=3)[0]),
    "scan that hands weights on": Use(hands_on, "activations x2", is_stack=True),
    "stacked outputs of a scan": Use(
        lambda w, x: jnp.sum(lax.scan(lambda _, own: (None, x @ own["a"]), None, w)[1], 0), b=NEVER, is_stack=True
    ),
    "scan along an axis of one weight": Use(
        lambda w, x: lax.scan(
            lambda y, own: (y + own[1][:, None] * own[0][None], None), jnp.zeros((TOKENS, D)), (w["a"], x.T)
        )[0],
        "dW: scanned along an axis of one weight",
        NEVER,
    ),
    "while": Use(while_of, is_stack=True, has_gradient=False),
    "while on a weight": Use(while_on, has_gradient=False),
    "map": Use(lambda w, x: jnp.sum(lax.map(lambda own: layer(x, own)[0], w), 0), is_stack=True),
    "map in batches": Use(
        lambda w, x: lax.map(lambda x: layer(x, w)[0], x, batch_size=2), "activations x2", "activations x2"
    ),
    "map of layers in batches": Use(
        lambda w, x: jnp.sum(lax.map(lambda own: layer(x, own)[0], w, batch_size=2), 0),
        "activations x2",
        "activations x2",
        is_stack=True,
    ),
    "associative_scan": Use(lambda w, x: lax.associative_scan(jnp.add, x @ w["a"]) @ w["b"]),
    "associative_scan of weights": Use(
        lambda w, x: x @ lax.associative_scan(jnp.matmul, w["a"])[-1], "dW: slice x4", NEVER, is_stack=True
    ),
    "remat in scan in remat": Use(remat_in_scan_in_remat, is_stack=True),
    "switch on a weight": Use(
        lambda w, x: lax.switch(jnp.int32(w["a"][0, 0] > 0), [lambda x: x @ w["b"], tanh], x), "dW: slice"
    ),
    "branches that return weights": Use(
        lambda w, x: x @ lax.cond(x[0, 0] > 0, lambda: w["a"], lambda: w["b"]),
        "dW: left a branch",
        "dW: left a branch",
    ),
    # parts of stacks and of weights
    "some layers": Use(lambda w, x: scan(jax.tree.map(lambda leaf: leaf[1:3], w), x), is_stack=True),
    "some layers, where x says": Use(
        lambda w, x: scan(jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, jnp.argmax(x[0]) - 2, 2), w), x),
        is_stack=True,
    ),
    "every other layer": Use(
        lambda w, x: scan(jax.tree.map(lambda leaf: leaf[::2], w), x), "dW: slice", "dW: slice", is_stack=True
    ),
    "layers backwards": Use(
        lambda w, x: scan(jax.tree.map(lambda leaf: leaf[::-1], w), x), "dW: rev", "dW: rev", is_stack=True
    ),
    "kernel in parts": Use(
        lambda w, x: sum(x @ part for part in jnp.split(w["a"], 2, axis=1)) @ w["b"][:4], "dW: split", "dW: slice"
    ),
    "two kernels in one": Use(
        lambda w, x: x @ jnp.concatenate([w["a"], w["b"]], 1), "dW: concatenate", "dW: concatenate"
    ),
    "all layers in one product": Use(
        lambda w, x: x @ jnp.moveaxis(w["a"], 0, 1).reshape(D, LAYERS * D), b=NEVER, is_stack=True
    ),
    "vmap over layers": Use(lambda w, x: jax.vmap(lambda a: tanh(x @ a))(w["a"]), b=NEVER, is_stack=True),
    "vmap over outputs": Use(lambda w, x: jax.vmap(lambda a: x @ a, in_axes=1)(w["a"]), b=NEVER),
    "tile": Use(lambda w, x: jnp.tile(x, (1, 2)) @ jnp.tile(w["a"], (2, 1)), "dW: tile", NEVER),
    "set": Use(lambda w, x: x @ w["a"].at[0].set(1.0) @ w["b"], "dW: scatter"),
    # products
    "twice": Use(lambda w, x: tanh(tanh(x @ w["a"]) @ w["a"]) @ w["b"], "activations x2"),
    "on the left": Use(lambda w, x: (w["a"] @ x.T).T @ w["b"], TURNED),
    "transposed, on the left": Use(lambda w, x: (w["a"].T @ x.T).T @ w["b"]),
    "transposed": Use(lambda w, x: x @ w["a"].T @ w["b"].T, TURNED, TURNED),
    "einsum": Use(lambda w, x: jnp.einsum("...i,io->o...", x, w["a"]).T @ w["b"]),
    "a form of two": Use(lambda w, x: jnp.einsum("ti,io,to->t", x, w["a"], x), b=NEVER),
    "one vector": Use(lambda w, x: w["b"].T @ (x[0] @ w["a"])),
    "constant x": Use(lambda w, x: jnp.ones((TOKENS, D), x.dtype) @ w["a"] + x @ w["b"]),
    "product of weights": Use(lambda w, x: x @ (w["a"] @ w["b"]), "dW: dot_general", "dW: dot_general"),
    "gram": Use(lambda w, x: x @ (w["a"].T @ w["a"]) @ w["b"], "dW: dot_general x2"),
    "ragged_dot": Use(
        lambda w, x: lax.ragged_dot(x, w["a"], jnp.array([2, 1, 2])) @ w["b"][0],
        "dW: ragged_dot_general",
        is_stack=True,
    ),
    "convolution": Use(conv, "dW: conv_general_dilated", is_stack=True),
    "complex x": Use(
        lambda w, x: jnp.real(lax.complex(x, x) @ w["a"].astype(jnp.complex128)) @ w["b"], "dW: convert_element_type"
    ),
    # arithmetic
    "decay": Use(
        lambda w, x: x @ w["a"] @ w["b"] + jnp.sum(w["a"] ** 2) + jnp.sum(jnp.abs(w["b"])),
        "activations x1, dW: integer_pow",
        "activations x1, dW: abs",
    ),
    "scaled": Use(lambda w, x: x @ (w["a"] * 0.5) @ (w["b"] / 3), "dW: mul", "dW: div"),
    "masked": Use(lambda w, x: x @ jnp.where(x[0] > 0, w["a"], 0.0) @ w["b"], "dW: select_n"),
    "sum": Use(lambda w, x: x @ (w["a"] + w["b"]), "dW: add", "dW: add"),
    "solve": Use(lambda w, x: jnp.linalg.solve(w["a"] + 4 * jnp.eye(D), x.T).T @ w["b"], "dW: add"),
    "fourier": Use(lambda w, x: jnp.abs(jnp.fft.fft(w["a"])) @ x.T, "dW: convert_element_type", NEVER),
    "callback": Use(
        lambda w, x: x @ jax.pure_callback(np.negative, jax.ShapeDtypeStruct((D, D), x.dtype), w["a"]),
        "dW: pure_callback",
        NEVER,
        has_gradient=False,
    ),
    # answers
    "returned": Use(
        lambda w, x: (x @ w["a"], w["b"].T, w), "activations x1, dW: left the function", "dW: left the function x2"
    ),
    # derivatives
    "jvp": Use(
        lambda w, x: jax.jvp(lambda x: layer(x, w)[0], (x,), (jnp.cos(x),))[1], "activations x2", "activations x2"
    ),
    "gradient": Use(of_gradients, *["activations x1, activations (transposed) x1"] * 2),
    "gradient by the weights": Use(
        lambda w, x: jax.grad(lambda w: jnp.sum(layer(x, w)[0] ** 2))(w),
        ONCE,
        "activations x1, activations (transposed) x1",
    ),
    "hessian": Use(
        lambda w, x: jax.jvp(lambda x: of_gradients(w, x), (x,), (jnp.cos(x),))[1],
        "activations x2, activations (transposed) x2",
        "activations x2, activations (transposed) x1",
    ),
    "linearize": Use(
        lambda w, x: jax.linearize(lambda x: layer(x, w)[0], x)[1](jnp.cos(x)), "activations x2", "activations x2"
    ),
    # functions inside
    "static argument": Use(lambda w, x: jax.jit(lambda w, x, n: x @ w["a"] * n, static_argnums=2)(w, x, 3) @ w["b"]),
    "donated": Use(lambda w, x: jax.jit(lambda w, x: x @ w["a"], donate_argnums=1)(w, x + 1.0) @ w["b"]),
}
