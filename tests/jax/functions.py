"""Functions of a tree of weights, each in another way of jax: what `adapt` has to follow, or to make matrices for.

Each entry has its weights, how its sites are found, the function (weights, x), and what `explain` says of each leaf.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tnadapt_jax import Leaves, find_sites

D, LAYERS, EXPERTS, HEADS, WORDS = 8, 4, 3, 2, 12
APART = 2  # layers that are not stacked: programs of many layers take long to compile
ACTIVATIONS = "activations"


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64) / 4


def stack() -> dict[str, Any]:
    """Layers of two kinds of one shape, and one of another."""
    return {
        "layers": {
            "q": {"kernel": normal(1, LAYERS, D, D)},
            "v": {"kernel": normal(2, LAYERS, D, D)},
            "up": {"kernel": normal(3, LAYERS, D, 2 * D)},
            "down": {"kernel": normal(4, LAYERS, 2 * D, D)},
        }
    }


def apart() -> dict[str, Any]:
    """The first of these layers, each with weights of its own."""
    return {"layers": {str(n): jax.tree.map(lambda leaf, n=n: leaf[n], stack()["layers"]) for n in range(APART)}}


def block(layer: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """One layer: a product of two products, then two weights in a row."""
    x = x + jnp.tanh(x @ layer["q"]["kernel"]) * (x @ layer["v"]["kernel"])
    return x + jax.nn.relu(x @ layer["up"]["kernel"]) @ layer["down"]["kernel"]


def find_stack(weights: Any, **options: Any) -> Leaves:
    return find_sites(weights, target=["q", "v", "up", "down"], layout="linen", layer_axis={"layers": 0}, **options)


def find_apart(weights: Any) -> Leaves:
    return find_sites(weights, target=["q", "v", "up", "down"], layout="linen")


@dataclass(frozen=True)
class Function:
    """A function of weights. `dense` are the reasons for which updates are made as matrices, by path; else none is."""

    make: Callable[[], Any]
    find: Callable[[Any], Leaves]
    call: Callable[[Any, jax.Array], Any]
    dense: Mapping[str, str] = field(default_factory=dict)
    x: tuple[int, ...] = (5, D)


def in_loop(weights: Any, x: jax.Array) -> jax.Array:
    for layer in weights["layers"].values():
        x = block(layer, x)
    return x


def by_index(weights: Any, x: jax.Array) -> jax.Array:
    for n in range(LAYERS):
        x = block(jax.tree.map(lambda leaf, n=n: leaf[n], weights["layers"]), x)
    return x


def in_scan(weights: Any, x: jax.Array, **options: Any) -> jax.Array:
    return lax.scan(lambda x, layer: (block(layer, x), None), x, weights["layers"], **options)[0]


def in_nested_scan(weights: Any, x: jax.Array) -> jax.Array:
    pairs = jax.tree.map(lambda leaf: leaf.reshape(2, LAYERS // 2, *leaf.shape[1:]), weights["layers"])

    def outer(x: jax.Array, some: Any) -> tuple[jax.Array, None]:
        return lax.scan(lambda x, layer: (block(layer, x), None), x, some)[0], None

    return lax.scan(outer, x, pairs)[0]


def in_checkpointed_scan(policy: Any, weights: Any, x: jax.Array) -> jax.Array:
    body = jax.checkpoint(lambda x, layer: (block(layer, x), None), policy=policy)
    return lax.scan(body, x, weights["layers"])[0]


def over_axis_1(weights: Any, x: jax.Array) -> jax.Array:
    return in_scan({"layers": jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), weights["layers"])}, x)


def in_fori(weights: Any, x: jax.Array) -> jax.Array:
    def body(n: Any, x: jax.Array) -> jax.Array:
        return block(jax.tree.map(lambda leaf: leaf[n], weights["layers"]), x)

    return lax.fori_loop(0, LAYERS, body, x)


def in_while(weights: Any, x: jax.Array) -> jax.Array:
    """A loop whose length is known only at run time. It has no gradient backwards."""

    def body(carry: Any) -> Any:
        n, x = carry
        return n + 1, block(
            jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, n, 0, False), weights["layers"]), x
        )

    return lax.while_loop(lambda carry: carry[0] < LAYERS, body, (0, x))[1]


def in_cond(weights: Any, x: jax.Array) -> jax.Array:
    layers = list(weights["layers"].values())
    x = lax.cond(x[0, 0] > 0, lambda x: block(layers[0], x), lambda x: block(layers[1], x), x)
    return lax.switch(jnp.argmax(x[0]) % 2, [partial(block, one) for one in layers], x)


def in_jit(weights: Any, x: jax.Array) -> jax.Array:
    return jax.jit(in_loop)(weights, x)


def in_vmap(weights: Any, x: jax.Array) -> jax.Array:
    return jax.vmap(in_loop, in_axes=(None, 0))(weights, x)


def over_layers(weights: Any, x: jax.Array) -> jax.Array:
    """Each layer has its own x."""
    return jax.vmap(block)(weights["layers"], jnp.stack([x] * LAYERS))


@jax.custom_vjp
def doubled(weight: jax.Array, x: jax.Array) -> jax.Array:
    """A product with a rule of its own for gradients, twice as large as the true ones."""
    return x @ weight


doubled.defvjp(lambda weight, x: (x @ weight, (weight, x)), lambda kept, dy: (2 * kept[1].T @ dy, 2 * dy @ kept[0].T))


@jax.custom_jvp
def tripled(weight: jax.Array, x: jax.Array) -> jax.Array:
    """A product whose tangent is three times as large as the true one."""
    return x @ weight


@tripled.defjvp
def _(primals: Any, tangents: Any) -> Any:
    weight, x = primals
    return x @ weight, 3 * (x @ tangents[0] + tangents[1] @ weight)


def with_rule(rule: Any, weights: Any, x: jax.Array) -> jax.Array:
    for layer in weights["layers"].values():
        x = x + jnp.tanh(rule(layer["q"]["kernel"], x)) * (x @ layer["v"]["kernel"])
        x = x + jax.nn.relu(x @ layer["up"]["kernel"]) @ layer["down"]["kernel"]
    return x


def experts(*lead: int) -> dict[str, Any]:
    return {
        "router": normal(5, D, EXPERTS),
        "mlp": {
            "up": {"kernel": normal(6, *lead, EXPERTS, D, 2 * D)},
            "down": {"kernel": normal(7, *lead, EXPERTS, 2 * D, D)},
        },
    }


def find_experts(weights: Any, **options: Any) -> Leaves:
    return find_sites(weights, target=["up", "down"], layout="expert in out", **options)


def in_dense_experts(weights: Any, x: jax.Array) -> jax.Array:
    h = jax.nn.relu(jnp.einsum("td,edf->tef", x, weights["mlp"]["up"]["kernel"]))
    gates = jax.nn.softmax(x @ weights["router"])
    return x + jnp.einsum("tef,efd->td", h * gates[..., None], weights["mlp"]["down"]["kernel"])


def in_experts_of_capacity(weights: Any, x: jax.Array) -> jax.Array:
    chosen = jax.nn.one_hot(jnp.argmax(x @ weights["router"], -1), EXPERTS, dtype=x.dtype)  # (token, expert)
    each = jnp.einsum("te,td->etd", chosen, x)
    h = jax.nn.relu(jnp.einsum("etd,edf->etf", each, weights["mlp"]["up"]["kernel"]))
    made = jnp.einsum("etf,efd->etd", h, weights["mlp"]["down"]["kernel"])
    return x + jnp.einsum("te,etd->td", chosen, made)


def in_scan_of_experts(weights: Any, x: jax.Array) -> jax.Array:
    def body(x: jax.Array, mlp: Any) -> tuple[jax.Array, None]:
        return in_dense_experts({"router": weights["router"], "mlp": mlp}, x), None

    return lax.scan(body, x, weights["mlp"])[0]


def attention_weights() -> dict[str, Any]:
    """Kernels of three axes: (d, heads, head size), and (heads, head size, d)."""
    names = {"q": (D, HEADS, 4), "k": (D, 1, 4), "v": (D, 1, 4), "o": (HEADS, 4, D)}
    return {name: {"kernel": normal(10 + n, *shape)} for n, (name, shape) in enumerate(names.items())}


def find_attention(weights: Any) -> Leaves:
    inner = find_sites(weights, target=["q", "k", "v"], layout="in out out")
    return inner + find_sites(weights, target=["o"], layout="in in out")


def attention(weights: Any, x: jax.Array) -> jax.Array:
    q, k, v = (jnp.einsum("td,dhk->thk", x, weights[name]["kernel"]) for name in "qkv")
    k, v = (jnp.repeat(one, HEADS, axis=1) for one in (k, v))
    seen = jax.nn.softmax(jnp.einsum("thk,shk->hts", q, k))
    return x + jnp.einsum("thk,hkd->td", jnp.einsum("hts,shk->thk", seen, v), weights["o"]["kernel"])


def tied(weights: Any, x: jax.Array) -> jax.Array:
    """An embedding that is read by rows, and is the head as well."""
    words = jnp.argmax(x, -1)
    h = jnp.tanh(jnp.take(weights["embed"], words, axis=0))
    return h @ weights["embed"].T


def fused(weights: Any, x: jax.Array) -> jax.Array:
    q, k, v = jnp.split(x @ weights["qkv"]["kernel"], [D, D + D // 2], axis=-1)
    return q * jnp.concatenate([k, v], axis=-1)


def find_fused(weights: Any) -> Leaves:
    return find_sites(weights, target=["qkv"], layout="linen", fused={"qkv": {"q": D, "k": D // 2, "v": D // 2}})


def find_blocks(weights: Any) -> Leaves:
    return find_sites(weights, target=["qkv"], layout="linen", blocks={"qkv": (2, 2)})


POLICIES = jax.checkpoint_policies
ALL = dict.fromkeys((f"layers.{kind}.kernel" for kind in ("q", "v", "up", "down")), "")
FUNCTIONS: dict[str, Function] = {
    "loop": Function(apart, find_apart, in_loop),
    "index": Function(stack, find_stack, by_index),
    "scan": Function(stack, find_stack, in_scan),
    "scan backwards, unrolled": Function(stack, find_stack, partial(in_scan, reverse=True, unroll=2)),
    "nested scan": Function(stack, find_stack, in_nested_scan),
    "scan over axis 1": Function(
        lambda: {"layers": jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), stack()["layers"])},
        lambda weights: find_sites(weights, target=["q", "v", "up", "down"], layout="linen", layer_axis={"layers": 1}),
        over_axis_1,
    ),
    **{
        f"checkpoint, {name}": Function(stack, find_stack, partial(in_checkpointed_scan, policy))
        for name, policy in {
            "nothing": POLICIES.nothing_saveable,
            "dots": POLICIES.dots_saveable,
            "dots without batch": POLICIES.dots_with_no_batch_dims_saveable,
        }.items()
    },
    "fori": Function(stack, find_stack, in_fori),
    "cond": Function(apart, find_apart, in_cond),
    "jit": Function(apart, find_apart, in_jit),
    "vmap": Function(apart, find_apart, in_vmap, x=(2, 5, D)),
    "vmap over layers": Function(stack, find_stack, over_layers),
    "custom_vjp": Function(
        apart,
        find_apart,
        partial(with_rule, doubled),
        {f"layers.{n}.q.kernel": "custom_vjp_call" for n in range(APART)},
    ),
    "custom_jvp": Function(
        apart,
        find_apart,
        partial(with_rule, tripled),
        {f"layers.{n}.q.kernel": "custom_jvp_call" for n in range(APART)},
    ),
    "experts": Function(experts, find_experts, in_dense_experts),
    "experts of a capacity": Function(experts, find_experts, in_experts_of_capacity),
    "scan of experts": Function(
        partial(experts, LAYERS), partial(find_experts, layer_axis={"mlp": 0}), in_scan_of_experts
    ),
    "attention": Function(attention_weights, find_attention, attention),
    "tied embedding": Function(
        lambda: {"embed": normal(20, WORDS, D)},
        lambda weights: find_sites(weights, target=["embed"], layout="in out"),
        tied,
        {"embed": "gather"},
        x=(5, WORDS),
    ),
    "fused": Function(lambda: {"qkv": {"kernel": normal(21, D, 2 * D)}}, find_fused, fused),
    "blocks": Function(lambda: {"qkv": {"kernel": normal(21, D, 2 * D)}}, find_blocks, fused),
}
