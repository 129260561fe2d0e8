"""Models of flax nnx, each built in another way: what `tnadapt_jax.nnx.attach` has to adapt.

Each entry has the model in float64, the arguments of `attach`, an input, and the leaves that are read by rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

D, LAYERS, HEADS, KV, SIZE, WORDS, LENGTH = 8, 3, 4, 2, 4, 12, 5
WIDE = jnp.float64


def linear(inner: int, outer: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inner, outer, param_dtype=WIDE, rngs=rngs)


def normal(rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    return nnx.Param(jax.random.normal(rngs.params(), shape, WIDE) / 3)


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.up, self.down = linear(D, 2 * D, rngs), linear(2 * D, D, rngs)

    def __call__(self, x, *, scale=1.0):
        return x + self.down(nnx.gelu(self.up(x) * scale))

    def encode(self, x):
        return jnp.tanh(self.up(x))


class Noisy(nnx.Module):
    """A layer that changes statistics and counts random numbers at each call."""

    def __init__(self, rngs):
        self.mlp = Mlp(rngs)
        self.norm = nnx.BatchNorm(D, param_dtype=WIDE, rngs=rngs)
        for statistic in (self.norm.mean, self.norm.var):  # flax makes them in float32
            statistic.set_value(statistic[...].astype(WIDE))
        self.drop = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.mlp(self.norm(x)))


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.attend = nnx.MultiHeadAttention(
            HEADS, D, HEADS * SIZE, param_dtype=WIDE, decode=False, dropout_rate=0.2, rngs=rngs
        )

    def __call__(self, x):
        return x + self.attend(x, mask=nnx.make_causal_mask(x[..., 0]))


class Scanned(nnx.Module):
    """Layers stacked along one axis, scanned over, with a checkpoint in each."""

    axis = 0

    def __init__(self, rngs):
        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap(in_axes=0, out_axes=nnx.StateAxes({nnx.Param: self.axis, ...: 0}))
        def make(rngs):
            return self.layer(rngs)

        self.layers = make(rngs)

    def layer(self, rngs):
        return Noisy(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.StateAxes({nnx.Param: self.axis, ...: 0}), nnx.Carry), out_axes=nnx.Carry)
        @nnx.remat
        def run(layer, x):
            return layer(x)

        return run(self.layers, x)


class Recurrent(nnx.Module):
    def __init__(self, rngs, cell=nnx.LSTMCell):
        self.rnn = nnx.RNN(cell(D, D, param_dtype=WIDE, dtype=WIDE, rngs=rngs))

    def __call__(self, x):
        return self.rnn(x)


class Tied(nnx.Module):
    """An embedding that is read by rows, and is the head as well."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(WORDS, D, param_dtype=WIDE, rngs=rngs)
        self.mlp = Mlp(rngs)

    def __call__(self, words):
        return self.embed.attend(self.mlp(self.embed(words)))


class Twice(nnx.Module):
    """Two modules that share one kernel."""

    def __init__(self, rngs):
        self.first, self.second = linear(D, D, rngs), linear(D, D, rngs)
        self.second.kernel = self.first.kernel

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def attended(q, k, v):
    """Attention of grouped queries: q (t, heads, size), k and v (t, groups, size)."""
    k, v = (jnp.repeat(one, HEADS // KV, axis=-2) for one in (k, v))
    seen = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) / SIZE**0.5)
    return jnp.einsum("bhts,bshk->bthk", seen, v)


class Einsum(nnx.Module):
    def __init__(self, rngs, *shape):
        self.w = normal(rngs, *shape)

    def __call__(self, equation, x):
        return jnp.einsum(equation, x, self.w[...])


class GemmaLayer(nnx.Module):
    """A layer as in Gemma: kernels with the heads in front, and keys and values in one."""

    def __init__(self, rngs):
        self.norm = nnx.RMSNorm(D, param_dtype=WIDE, rngs=rngs)
        self.q_einsum = Einsum(rngs, HEADS, D, SIZE)
        self.kv_einsum = Einsum(rngs, 2, KV, D, SIZE)
        self.attn_vec_einsum = Einsum(rngs, HEADS, SIZE, D)
        self.gate_proj, self.up_proj = linear(D, 2 * D, rngs), linear(D, 2 * D, rngs)
        self.down_proj = linear(2 * D, D, rngs)

    def __call__(self, x):
        h = self.norm(x)
        k, v = self.kv_einsum("btd,ckdh->cbtkh", h)
        x = x + self.attn_vec_einsum("btnh,nhd->btd", attended(self.q_einsum("btd,ndh->btnh", h), k, v))
        return x + self.down_proj(nnx.gelu(self.gate_proj(x)) * self.up_proj(x))


class Gemma(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([GemmaLayer(rngs) for _ in range(2)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class MaxTextLayer(nnx.Module):
    """A layer as in MaxText: kernels (in, heads, head size) and (heads, head size, out)."""

    def __init__(self, rngs):
        self.norms = nnx.List([nnx.RMSNorm(D, param_dtype=WIDE, rngs=rngs) for _ in range(2)])
        kernels = {"axis": -1, "use_bias": False, "param_dtype": WIDE, "rngs": rngs}
        self.query = nnx.LinearGeneral(D, (HEADS, SIZE), **kernels)
        self.key, self.value = (nnx.LinearGeneral(D, (KV, SIZE), **kernels) for _ in range(2))
        self.out = nnx.LinearGeneral((HEADS, SIZE), D, **(kernels | {"axis": (-2, -1)}))
        self.wi_0, self.wi_1, self.wo = linear(D, 2 * D, rngs), linear(D, 2 * D, rngs), linear(2 * D, D, rngs)

    def __call__(self, x):
        h = self.norms[0](x)
        x = x + self.out(attended(self.query(h), self.key(h), self.value(h)))
        h = self.norms[1](x)
        return x + self.wo(nnx.silu(self.wi_0(h)) * self.wi_1(h))


class MaxText(Scanned):
    axis = 1

    def layer(self, rngs):
        return MaxTextLayer(rngs)


@dataclass(frozen=True)
class Host:
    """A model. `dense` are the reasons for which updates are made as matrices, by path; else none is."""

    make: Callable[[nnx.Rngs], nnx.Module]
    find: Mapping[str, Any]
    shape: tuple[int, ...] = (2, LENGTH, D)
    dense: Mapping[str, str] = field(default_factory=dict)
    words: bool = False

    def x(self, seed: int = 9) -> jax.Array:
        key = jax.random.key(seed)
        return jax.random.randint(key, self.shape, 0, WORDS) if self.words else jax.random.normal(key, self.shape, WIDE)


UP_DOWN: dict[str, Any] = {"target": ["up", "down"]}
QKV = dict.fromkeys(("query", "key", "value"), "in out out") | {"out": "in in out"}
EINSUMS = {"q_einsum.w": "out in out", "kv_einsum.w": "out out in out", "attn_vec_einsum.w": "in in out"}
PLAIN = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "nnx")
HOSTS: dict[str, Host] = {
    "mlp": Host(Mlp, UP_DOWN),
    "statistics and dropout": Host(Noisy, UP_DOWN),
    "attention": Host(Attention, {"layout": QKV}),
    "scan of checkpoints": Host(Scanned, UP_DOWN | {"layer_axis": {"layers": 0}}),
    "lstm": Host(Recurrent, {"target": r"rnn\.cell\.[ih][ifgo]"}),
    "gru": Host(lambda rngs: Recurrent(rngs, nnx.GRUCell), {"target": r"rnn\.cell\.\w+"}),
    "tied embedding": Host(
        Tied,
        {"layout": {"embed.embedding": "in out", "up": "nnx", "down": "nnx"}},
        (2, LENGTH),
        {"embed.embedding": "gather"},
        words=True,
    ),
    "one kernel twice": Host(Twice, {"target": ["first"]}),
    "gemma": Host(Gemma, {"layout": EINSUMS | PLAIN}),
    "maxtext": Host(
        MaxText,
        {"layout": QKV | dict.fromkeys(("wi_0", "wi_1", "wo"), "nnx"), "layer_axis": {"layers": 1}},
    ),
}


class Branching(Mlp):
    def __call__(self, x):
        return nnx.cond(x.sum() > 0, lambda up, x: up(x), lambda up, x: jnp.tanh(up(x)), self.up, x)


class Looping(Mlp):
    def __call__(self, x):
        return nnx.fori_loop(0, 3, lambda n, held: (held[0], Mlp.__call__(held[0], held[1])), (self, x))[1]


class Mapped(Mlp):
    def __call__(self, x):
        return nnx.vmap(lambda up, x: up(x), in_axes=(None, 0))(self.up, x)


class Jitted(Mlp):
    def __call__(self, x):
        return nnx.jit(lambda up, x: up(x))(self.up, x)


class Differentiated(Mlp):
    def __call__(self, x):
        return nnx.grad(lambda x, up: jnp.sin(up(x)).sum())(x, self.up)


TRANSFORMED = (Branching, Looping, Mapped, Jitted, Differentiated)
