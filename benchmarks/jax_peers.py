"""JAX: LoRA in four flax models by `adapt` and by qwix: whether the update arrives, the flops, and the time to trace.

qwix (Apache-2.0) is no dependency: pip install --no-deps qwix==0.1.8, else its columns stay empty.
"""

import argparse
import importlib
import importlib.util
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from recording import table
from timing import record_options, write_record

import tnadapt_jax
from tnadapt import families

WIDTH, LAYERS, TOKENS, RANK = 256, 8, 128, 8
EXACT = 1e-5  # of the largest entry, in float32


class Linear(nnx.Module):
    """A residual MLP of nnx.Linear."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the kernels."""
        self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs) for _ in range(LAYERS)])

    def __call__(self, x: Any) -> Any:
        """Return x after all layers."""
        for layer in self.layers:
            x = x + jnp.tanh(layer(x))
        return x


class Product(nnx.Module):
    """A kernel of its own, and a product in one line."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the kernels."""
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (WIDTH, WIDTH)) / 16)

    def __call__(self, x: Any) -> Any:
        """Return x times the kernel."""
        return x @ self.kernel[...]


class Tied(nnx.Module):
    """A kernel that is read as it is and transposed, as that of an embedding and its head."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the kernels."""
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (WIDTH, WIDTH)) / 16)

    def __call__(self, x: Any) -> Any:
        """Return x times the kernel, and that times its transpose."""
        return jnp.tanh(x @ self.kernel[...]) @ self.kernel[...].T


class OneLine(Linear):
    """The same with kernels of its own."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the kernels."""
        self.layers = nnx.List([Product(rngs) for _ in range(LAYERS)])


class Turned(Linear):
    """The same with tied kernels."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the kernels."""
        self.layers = nnx.List([Tied(rngs) for _ in range(LAYERS)])


class Scanned(nnx.Module):
    """Layers that are stacked, under nnx.scan."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the kernels."""
        make = nnx.vmap(lambda rngs: nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs), in_axes=0, out_axes=0)
        self.layers = make(rngs.split(LAYERS))

    def __call__(self, x: Any) -> Any:
        """Return x after all layers."""
        run = nnx.scan(lambda x, layer: x + jnp.tanh(layer(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return run(x, self.layers)


MODELS: dict[str, tuple[type, list[str], dict[str, int] | None]] = {
    "nnx.Linear": (Linear, [rf"layers\.{n}" for n in range(LAYERS)], None),
    "kernels in one line": (OneLine, [rf"layers\.{n}" for n in range(LAYERS)], None),
    "a kernel and its transpose": (Turned, [rf"layers\.{n}" for n in range(LAYERS)], None),
    "nnx.scan": (Scanned, ["layers"], {"": 0}),
}


def count_flops(jaxpr: Any) -> int:
    """Return the flops of all products, with those of a scan's body times its length."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (summed, _), _ = eqn.params["dimension_numbers"]
            sizes = [eqn.invars[0].aval.shape[axis] for axis in summed]
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(sizes)
        inner = [getattr(one, "jaxpr", one) for one in eqn.params.values()]
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        total += sum(times * count_flops(one) for one in inner if hasattr(one, "eqns"))
    return total


def measure(run: Callable[[Any, Any], Any], trained: Any, x: Any, wanted: Any) -> str:
    """Return the largest error of the output, the flops of a gradient, and the time to trace it, as text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        error = float(jnp.abs(run(trained, x) - wanted).max() / jnp.abs(wanted).max())
        start = time.perf_counter()
        jaxpr = jax.make_jaxpr(jax.grad(lambda trained: jnp.sum(run(trained, x) ** 2)))(trained)
        seconds = time.perf_counter() - start
    verdict = "right" if error < EXACT else f"off by {100 * error:.0f} %"
    return f"{verdict} | {count_flops(jaxpr.jaxpr) / 1e9:.2f} | {seconds:.2f}"


def ours(model: nnx.Module, x: Any, target: list[str], stack: dict[str, int] | None) -> str:
    """Return what `adapt` does with a model."""
    graph, weights, rest = nnx.split(model, nnx.Param, ...)
    pure = nnx.to_pure_dict(weights)
    layer_axis = None if stack is None else 0
    leaves = tnadapt_jax.find_sites(pure, target="|".join(target), layout="in out", layer_axis=layer_axis)
    adapter = families.lora(alpha=RANK).bind(leaves.sites, rank=RANK, seed=0)
    params = jax.tree.map(lambda value: value + 0.02, tnadapt_jax.init(adapter))

    def apply(pure: Any, x: Any) -> Any:
        state = jax.tree.map(lambda value: value, weights)
        nnx.replace_by_pure_dict(state, pure)
        return nnx.merge(graph, state, rest)(x)

    adapted = tnadapt_jax.adapt(apply, adapter, leaves)
    wanted = apply(tnadapt_jax.merge(adapter, params, pure, leaves), x)
    return measure(lambda trained, x: adapted(params | {"trainable": trained}, pure, x), params["trainable"], x, wanted)


def of_qwix(model: nnx.Module, x: Any) -> str:
    """Return what qwix does with a model."""
    qwix = importlib.import_module("qwix")
    provider = qwix.LoraProvider(module_path=".*", rank=RANK, alpha=RANK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            lora = qwix.apply_lora_to_model(model, provider, x, rngs=nnx.Rngs(3))
        except Exception as error:  # whatever it is, it is what a user meets
            return f"{type(error).__name__} | - | -"
    graph, factors, rest = nnx.split(lora, nnx.LoRAParam, ...)
    factors = jax.tree.map(lambda value: value + 0.02, factors)
    held = nnx.to_pure_dict(factors)
    if not jax.tree.leaves(held):
        return "no factors | - | -"
    plain = jax.tree.map(lambda value: value, nnx.state(model, nnx.Param))
    kernels = nnx.to_pure_dict(plain)

    def add(kernels: Any, held: Any) -> None:
        for name in list(kernels):
            if isinstance(kernels[name], dict):
                add(kernels[name], held.get(name, {}))
            elif f"{name}_lora_a" in held:
                kernels[name] = kernels[name] + held[f"{name}_lora_a"] @ held[f"{name}_lora_b"]

    add(kernels, held)
    nnx.replace_by_pure_dict(plain, kernels)
    merged = nnx.clone(model)
    nnx.update(merged, plain)
    return measure(lambda factors, x: nnx.merge(graph, factors, rest)(x), factors, x, merged(x))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    record_options(parser)
    options = parser.parse_args()
    rows = []
    has_qwix = importlib.util.find_spec("qwix") is not None
    x = jax.random.normal(jax.random.key(0), (TOKENS, WIDTH))
    print("| model | adapt | GFLOP | trace (s) | qwix | GFLOP | trace (s) |\n|---|---|---:|---:|---|---:|---:|")
    for name, (make, target, stack) in MODELS.items():
        mine = ours(make(nnx.Rngs(0)), x, target, stack)
        theirs = of_qwix(make(nnx.Rngs(0)), x) if has_qwix else "- | - | -"
        print(f"| {name} | {mine} | {theirs} |", flush=True)
        heads = ("adapt", "GFLOP", "trace (s)", "qwix", "GFLOP of qwix", "trace of qwix (s)")
        rows.append({"model": name} | dict(zip(heads, f"{mine} | {theirs}".split(" | "), strict=True)))
    write_record(options, [table(rows)])


if __name__ == "__main__":
    main()
