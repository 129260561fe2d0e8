"""JAX: `adapt` on a scan of layers as large as Llama 3.1 8B's, against `apply_in_layer` by hand. Nothing is computed.

python benchmarks/jax_adapt.py [--families lora lotr vera] [--memory]    --memory compiles, which takes a minute each
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax_peers import count_flops
from recording import table
from timing import record_options, write_record

import tnadapt_jax
from tnadapt import Adapter, families

Product = Callable[[str, Array], Array]
TREES = ("trainable", "frozen")


@dataclass(frozen=True)
class Model:
    """Layers of attention with grouped keys and a gated feed-forward part, as a function of stacked weights."""

    layers: int = 32
    width: int = 4096
    inner: int = 14336
    heads: int = 32
    key_heads: int = 8
    tokens: int = 2048
    dtype: Any = jnp.bfloat16

    @property
    def kinds(self) -> dict[str, tuple[int, int]]:
        """The kernel (in, out) of each kind."""
        d, keys, f = self.width, self.width * self.key_heads // self.heads, self.inner
        return {"q": (d, d), "k": (d, keys), "v": (d, keys), "o": (d, d), "gate": (d, f), "up": (d, f), "down": (f, d)}

    def weights(self, make: Callable[..., Any] = jax.ShapeDtypeStruct) -> dict[str, Any]:
        """Return the tree of weights, by default without values."""
        shapes = {name: (self.layers, *shape) for name, shape in self.kinds.items()}
        return {"layers": {name: {"kernel": make(shape, self.dtype)} for name, shape in shapes.items()}}

    def block(self, product: Product, x: Array) -> Array:
        """Return x (token, width) after one layer; `product` multiplies with a kernel by its name."""
        size = self.width // self.heads
        q, k, v = (product(name, x).reshape(len(x), -1, size) for name in "qkv")
        k, v = (jnp.repeat(one, self.heads // self.key_heads, axis=1) for one in (k, v))
        seen = jax.nn.softmax(jnp.einsum("thk,shk->hts", q, k).astype(jnp.float32)).astype(x.dtype)
        x = x + product("o", jnp.einsum("hts,shk->thk", seen, v).reshape(len(x), -1))
        return x + product("down", jax.nn.silu(product("gate", x)) * product("up", x))

    def plain(self, weights: Any, x: Array) -> Array:
        """Return x after all layers, which are checkpointed and scanned."""
        body = jax.checkpoint(lambda x, own: (self.block(lambda name, x: x @ own[name]["kernel"], x), None))
        return lax.scan(body, x, weights["layers"])[0]

    def by_hand(self, adapter: Adapter) -> Callable[[Any, Any, Array], Array]:
        """Return the same with an update beside each product."""

        def run(params: Any, weights: Any, x: Array) -> Array:
            shared, per_layer = tnadapt_jax.scan_split(adapter, params)

            def body(x: Array, inputs: tuple[Any, Any]) -> tuple[Array, None]:
                own, factors = inputs

                def product(name: str, x: Array) -> Array:
                    return x @ own[name]["kernel"] + tnadapt_jax.apply_in_layer(adapter, shared, factors, name, x)

                return self.block(product, x), None

            return lax.scan(jax.checkpoint(body), x, (weights["layers"], per_layer))[0]

        return run


@dataclass(frozen=True)
class Figures:
    """What one gradient takes: products, seconds to trace, characters of the lowered text, bytes of temporaries."""

    flops: int
    seconds: float
    text: int
    memory: int | None


def measure(model: Model, family: str, *, memory: bool) -> Mapping[str, Figures]:
    """Return the figures of a gradient of all trained numbers, by hand and by `adapt`."""
    weights = model.weights()
    leaves = tnadapt_jax.find_sites(weights, target=[*model.kinds], layout="linen", layer_axis={"layers": 0})
    adapter = getattr(families, family)().bind(leaves.sites, rank=8, seed=0)
    held = {name: jax.ShapeDtypeStruct(slot.shape, jnp.float32) for name, slot in adapter.slots.items()}
    trained = {name: one for name, one in held.items() if adapter.slots[name].factor.trainable}
    frozen = {name: one for name, one in held.items() if name not in trained}
    x = jax.ShapeDtypeStruct((model.tokens, model.width), model.dtype)
    runs = {"hand": model.by_hand(adapter), "adapt": tnadapt_jax.adapt(model.plain, adapter, leaves)}
    found = {}
    for name, run in runs.items():

        def loss(trained: Any, frozen: Any, weights: Any, x: Array, run: Any = run) -> Array:
            params = dict(zip(TREES, (trained, frozen), strict=True))
            return jnp.sum(run(params, weights, x).astype(jnp.float32))

        start = time.perf_counter()
        traced = jax.jit(jax.grad(loss)).trace(trained, frozen, weights, x)
        seconds = time.perf_counter() - start
        lowered = traced.lower()
        temporary = lowered.compile().memory_analysis().temp_size_in_bytes if memory else None
        found[name] = Figures(count_flops(traced.jaxpr.jaxpr), seconds, len(lowered.as_text()), temporary)
    return found


def main() -> None:
    """Print one line per family: the ratios of `adapt` to the same by hand."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--families", nargs="+", default=["lora", "lotr", "vera"])
    parser.add_argument("--memory", action="store_true")
    record_options(parser)
    options = parser.parse_args()
    rows = []
    print("| family | flops | text | time to trace | temporary memory |\n|---|---:|---:|---:|---:|")
    for family in options.families:
        found = measure(Model(), family, memory=options.memory)
        hand, ours = found["hand"], found["adapt"]
        memory = f"{ours.memory / hand.memory:.3f}" if ours.memory and hand.memory else "-"
        ratios = f"{ours.flops / hand.flops:.4f} | {ours.text / hand.text:.4f} | {ours.seconds / hand.seconds:.2f}"
        print(f"| {family} | {ratios} | {memory} |", flush=True)
        row = {"family": family, "flops / by hand": ours.flops / hand.flops, "text / by hand": ours.text / hand.text}
        rows.append(row | {"seconds to trace / by hand": ours.seconds / hand.seconds, "memory / by hand": memory})
    write_record(options, [table(rows)])


if __name__ == "__main__":
    main()
