"""JAX: compare one site, jitted forward and backward, with hand-written jnp; and the memory of a scan over layers."""

import argparse
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from recording import table as recorded
from timing import ROUNDS, medians, record_options, write_record

import tnadapt
import tnadapt_jax
from tnadapt import families

WIDTH = 1024
TOKENS = (64, 2048)
TERA_RANKS = {f"r_{side}{n}": rank for side in "oi" for n, rank in enumerate((8, 4, 4), 1)}
CASES: dict[str, dict[str, Any]] = {
    "lora": {"rank": 8},
    "loha": {"rank": 8},
    "lokr": {"rank": 8},
    "vera": {"rank": 256},
    "lotr": {"rank": 8},
    "lorta": {"rank": 8, "sizes": {"head": 16}},
    "tlora": {"rank": 32},
    "tera": {"rank": TERA_RANKS},
}
Params = Mapping[str, Array]


def lora(p: Params, x: Array) -> Array:
    """LoRA in its usual form."""
    return (x @ p["A"].T) @ p["B"].T


def loha(p: Params, x: Array) -> Array:
    """LoHa by its dense update, as in PEFT and LyCORIS: there is no cheaper way at these sizes."""
    return x @ ((p["A1"] @ p["B1"]) * (p["A2"] @ p["B2"])).T


def lokr(p: Params, x: Array) -> Array:
    """LoKr factor by factor, without building the Kronecker product."""
    z = x.reshape(x.shape[0], p["C"].shape[1], -1) @ p["B"].T @ p["A"].T
    return jnp.einsum("oi,tip->top", p["C"], z).reshape(x.shape[0], -1)


def vera(p: Params, x: Array) -> Array:
    """VeRA as in PEFT."""
    return p["b"] * ((p["d"] * (x @ p["A"].T)) @ p["B"].T)


def lotr(p: Params, x: Array) -> Array:
    """LoTR as in the code of its authors."""
    return ((x @ p["B"]) @ p["G"].T) @ p["A"].T


def lorta(p: Params, x: Array) -> Array:
    """LoRTA by its factors; the heads need a small Khatri-Rao product."""
    out = (p["H"][:, None, :] * p["B"][None, :, :]).reshape(-1, p["B"].shape[1])
    return ((x @ p["A"]) * (p["L"] * p["M"])) @ out.T


def tlora(p: Params, x: Array) -> Array:
    """TLoRA as in the code of its author."""
    return p["a"] * (((x @ p["A"]) @ p["B"]) @ p["C"])


def tera(p: Params, x: Array) -> Array:
    """TeRA mode by mode: in maps, diagonals, the core as one matrix, diagonals, out maps."""
    z = x.reshape(-1, *(p[f"U_i{n}"].shape[0] for n in (1, 2, 3)))
    for n in (1, 2, 3):
        z = jnp.tensordot(z, p[f"U_i{n}"] * p[f"d_i{n}"], axes=([1], [0]))
    z = (z.reshape(z.shape[0], -1) @ p["G"].reshape(-1, z[0].size).T).reshape(-1, *p["G"].shape[:3])
    for n in (1, 2, 3):
        z = jnp.tensordot(z, p[f"U_o{n}"] * p[f"d_o{n}"], axes=([1], [1]))
    return z.reshape(x.shape[0], -1)


HANDS: dict[str, Callable[[Params, Array], Array]] = {
    "lora": lora,
    "loha": loha,
    "lokr": lokr,
    "vera": vera,
    "lotr": lotr,
    "lorta": lorta,
    "tlora": tlora,
    "tera": tera,
}
Pulled = tuple[Array, Any]


def with_gradients(forward: Callable[[Any, Any, Array], Array]) -> Callable[[Any, Any, Array, Array], Pulled]:
    """Return a jitted (trained, frozen, x, gradient) -> output, and the gradients of `trained` and x."""

    def run(trained: Any, frozen: Any, x: Array, gradient: Array) -> Pulled:
        y, pull = jax.vjp(lambda t, v: forward(t, frozen, v), trained, x)
        return y, pull(gradient)

    return jax.jit(run)


def contestants(family: str, tokens: int, dtype: str) -> dict[str, Callable[[], Any]]:
    """Make one site of two layers with tnadapt, and hand-written code on the factors of that site alone."""
    sites = tnadapt.grid(layers=2, kinds={"q": (WIDTH, WIDTH)})
    adapter = getattr(families, family)().bind(sites, alpha=1.0, **CASES[family])
    params = tnadapt_jax.init(adapter)
    keys = iter(jax.random.split(jax.random.key(0), 3 + len(params["trainable"])))
    trained = {name: 0.1 * jax.random.normal(next(keys), value.shape) for name, value in params["trainable"].items()}
    x, gradient = (jax.random.normal(next(keys), (tokens, WIDTH), dtype) for _ in range(2))
    group, site = adapter.find(sites[0])
    index = group.index(site)
    local = {}
    for name, factor in group.network.factors.items():
        key = adapter.slot_name(group, name)
        value = trained[key] if factor.trainable else params["frozen"][key]
        local[name] = value[tuple(index.get(mode, slice(None)) for mode in factor.modes)].astype(dtype)
    own = {name: value for name, value in local.items() if group.network.factors[name].trainable}
    kept = {name: value for name, value in local.items() if name not in own}

    def by_tnadapt(trained: Any, frozen: Any, x: Array) -> Array:
        return tnadapt_jax.apply(adapter, {"trainable": trained, "frozen": frozen}, site, x)

    def by_hand(trained: Any, frozen: Any, x: Array) -> Array:
        return HANDS[family](trained | frozen, x) * group.network.scale

    ours, hand = with_gradients(by_tnadapt), with_gradients(by_hand)
    found = ours(trained, params["frozen"], x, gradient)[0]
    wanted = hand(own, kept, x, gradient)[0]
    error = float(jnp.abs(found - wanted).max() / jnp.abs(wanted).max())
    if error > (1e-4 if dtype == "float32" else 5e-2):
        raise AssertionError(f"{family}: the two results differ by {error:.1e}")
    return {
        "tnadapt": lambda: jax.block_until_ready(ours(trained, params["frozen"], x, gradient)),
        "hand": lambda: jax.block_until_ready(hand(own, kept, x, gradient)),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Format rows as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    written = {float: "{:.2f}", int: "{:,}", str: "{}"}
    lines += [[written[type(value)].format(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def scan_memory() -> list[dict[str, Any]]:
    """Measure the temporary bytes of a gradient through a scan of 16 layers: by activations, and by dW in the body."""
    layers, width, batch = 16, 512, 64
    sites = tnadapt.grid(layers=layers, kinds={"q": (width, width)})
    adapter = families.lotr().bind(sites, rank=8)
    params, scale = tnadapt_jax.init(adapter), adapter.networks[0].scale
    weights, x = jnp.zeros((layers, width, width)), jnp.zeros((batch, width))

    def loss(trained: Any, frozen: Any, weights: Array, x: Array, way: str) -> Array:
        shared, per_layer = tnadapt_jax.scan_split(adapter, {"trainable": trained, "frozen": frozen})

        def body(x: Array, inputs: tuple[Any, Array]) -> tuple[Array, None]:
            layer, weight = inputs
            if way == "activations":
                y = x @ weight + tnadapt_jax.apply_in_layer(adapter, shared, layer, "q", x)
            else:
                y = x @ (weight + scale * (shared["B"] @ layer["G"].T @ shared["A"].T))
            return jnp.tanh(y), None

        return (jax.lax.scan(body, x, (per_layer, weights))[0] ** 2).sum()

    rows = []
    for way in ("activations", "dW in the body"):
        step = jax.jit(jax.grad(loss), static_argnums=4)
        compiled = step.lower(params["trainable"], params["frozen"], weights, x, way).compile()
        rows.append({"scan": way, "temporary bytes": int(compiled.memory_analysis().temp_size_in_bytes)})
    return [row | {"ratio": row["temporary bytes"] / rows[-1]["temporary bytes"]} for row in rows]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--families", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    record_options(parser)
    options = parser.parse_args()
    device = jax.devices()[0]
    options.device = {"gpu": "cuda"}.get(device.platform, device.platform)
    where = f"jax {jax.__version__}, {device.device_kind or platform.machine()}, {options.dtype}"
    print(f"\n{where}, medians of {options.rounds} rounds\n")
    rows = []
    for family in options.families:
        for tokens in TOKENS:
            times = medians(contestants(family, tokens, options.dtype), options.rounds)
            ratio = times["tnadapt"] / times["hand"]
            rows.append({"family": family, "tokens": tokens, "us": times["tnadapt"] * 1e6, "/ by hand": ratio})
    memory = scan_memory()
    print(f"{table(rows)}\n\n{table(memory)}")
    write_record(options, [recorded(rows, "One site"), recorded(memory, "A scan")])
    if options.json:
        options.json.write_text(json.dumps({"where": where, "rows": rows, "memory": memory}, indent=1))


if __name__ == "__main__":
    main()
