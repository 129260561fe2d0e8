"""Run by test_sharding in a process of its own, with eight devices: jax fixes their number on start."""

import os
import re
import sys
import traceback
from functools import partial

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import tnadapt_jax
from tests.table import FAMILIES
from tnadapt import families, magnitude

COLLECTIVE = re.compile(r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)")
D, LAYERS = 16, 2
RULES = {"out": "tensor", "in": "fsdp"}
NAMES = ("data", "fsdp", "tensor")


def mesh_of(kind):
    return jax.make_mesh((2, 2, 2), NAMES, axis_types=(kind,) * 3)


def at(mesh, *axes):
    return NamedSharding(mesh, PartitionSpec(*axes))


def by_mode(adapter, mesh, rules=RULES):
    specs = tnadapt_jax.shardings(adapter, rules, mesh=mesh)
    return jax.tree.map(partial(NamedSharding, mesh), specs)


def normal(seed, *shape):
    """Normal numbers; by numpy, since jax compiles a program for each shape."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def stack():
    sizes = {"q": (D, D), "up": (D, 2 * D), "v": (2 * D, D)}
    return {
        "layers": {name: {"kernel": normal(n, LAYERS, *size) / 4} for n, (name, size) in enumerate(sizes.items())},
        "norm": jnp.ones(D),
    }


def find(weights, target=("q", "up", "v")):
    return tnadapt_jax.find_sites(weights, target=list(target), layout="linen", layer_axis={"layers": 0})


def started(adapter, leaves, weights):
    """Params away from their start."""
    params = tnadapt_jax.init(adapter, weights=leaves.read(weights) if adapter.reads_weights else None)
    trained = params["trainable"].items()
    return params | {"trainable": {name: v + normal(n, *v.shape) / 4 for n, (name, v) in enumerate(trained)}}


def block(x, layer):
    x = jnp.tanh(x @ layer["q"]["kernel"])
    return x + jax.nn.relu(x @ layer["up"]["kernel"]) @ layer["v"]["kernel"]


def by_scan(weights, x):
    return lax.scan(lambda x, layer: (block(x, layer), None), x, weights["layers"])[0] * weights["norm"][None, None]


def by_loop(weights, x):
    for n in range(LAYERS):
        x = block(x, jax.tree.map(lambda leaf, n=n: leaf[n], weights["layers"]))
    return x * weights["norm"][None, None]


def expect_equal(found, wanted):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * max(1.0, float(jnp.abs(other).max())))


def adapted() -> None:
    """Values and all gradients of an adapted model on an automatic mesh, with everything split, are those of one."""
    mesh, weights = mesh_of(AxisType.Auto), stack()
    leaves = find(weights)
    x = normal(9, 4, 6, D)
    axes = {"q": ("fsdp", "tensor"), "up": ("fsdp", "tensor"), "v": ("tensor", "fsdp")}
    where = {name: {"kernel": at(mesh, None, *own)} for name, own in axes.items()}
    split_weights = jax.device_put(weights, {"layers": where, "norm": at(mesh, None)})
    split_x = jax.device_put(x, at(mesh, "data", "fsdp", None))
    for family, model in (("lotr", by_scan), ("lora", by_loop), ("vera", by_scan)):
        adapter = getattr(families, family)().bind(leaves.sites, rank=2)
        params = started(adapter, leaves, weights)
        run = tnadapt_jax.adapt(model, adapter, leaves, dense="refuse")

        def loss(params, weights, x, run=run):
            return (run(params, weights, x) ** 2).mean()

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        found = step(jax.device_put(params, by_mode(adapter, mesh)), split_weights, split_x)
        expect_equal(found, step(params, weights, x))


def applied() -> None:
    """`apply` on an automatic mesh, and in shard_map over tokens."""
    mesh, weights = mesh_of(AxisType.Auto), stack()
    leaves = find(weights)
    x = normal(9, 4, 6, D)
    for family in (families.lora, families.lotr, families.vera):
        adapter = family().bind(leaves.sites, rank=2)
        params, site = started(adapter, leaves, weights), "layers.1.up"

        def loss(params, x, adapter=adapter, site=site):
            y = tnadapt_jax.apply(adapter, params, site, x)
            return (y**2).sum(), y

        step = jax.jit(jax.grad(loss, has_aux=True, argnums=(0, 1)))
        wanted = step(params, x)
        split = jax.device_put(params, by_mode(adapter, mesh))
        expect_equal(step(split, jax.device_put(x, at(mesh, "data", "fsdp", "tensor"))), wanted)
        by_tokens = PartitionSpec("fsdp", "tensor")
        mapped = jax.shard_map(
            lambda params, x, adapter=adapter, site=site: tnadapt_jax.apply(adapter, params, site, x),
            mesh=mesh,
            in_specs=(PartitionSpec(), by_tokens),
            out_specs=by_tokens,
        )
        whole = jax.device_put(params, at(mesh))
        expect_equal(jax.jit(mapped)(whole, jax.device_put(x, at(mesh, "fsdp", "tensor"))), wanted[1])


def merged() -> None:
    """Merged weights are the same, keep their shardings, and need no collective in the compiled text."""
    weights = stack()
    for family in (families.lora, families.lotr, families.vera):
        # where weights of several shapes share a factor, as in VeRA, XLA moves parts of that factor
        leaves = find(weights, ("q",) if family is families.vera else ("q", "up"))
        adapter = family().bind(leaves.sites, rank=2)
        params = started(adapter, leaves, weights)
        wanted = tnadapt_jax.merge(adapter, params, weights, leaves)
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = mesh_of(kind)
            where = {n: {"kernel": at(mesh, None, "fsdp", "tensor")} for n in weights["layers"]}
            places = {"layers": where, "norm": at(mesh, "tensor")}
            split = jax.device_put(weights, places)
            merge = jax.jit(lambda p, w, a=adapter, n=leaves: tnadapt_jax.merge(a, p, w, n), out_shardings=places)
            for given in (jax.device_put(params, way) for way in (at(mesh), by_mode(adapter, mesh))):
                text = merge.lower(given, split).compile().as_text()
                assert not COLLECTIVE.search(text), COLLECTIVE.search(text)
                made = merge(given, split)
                expect_equal(made, wanted)
                for one, own in zip(jax.tree.leaves(made), jax.tree.leaves(split), strict=True):
                    assert one.sharding.is_equivalent_to(own.sharding, one.ndim)


EXPLICIT = {
    "lora": (families.lora(), {"rank": 2}),
    "lotr": (families.lotr(), {"rank": 2}),
    "lorta": (families.lorta(), {"rank": 2, "sizes": {"head": 4}}),
    "lokr": (families.lokr(), {"rank": 2}),
    "tt_lora": (FAMILIES["tt_lora centered"].spec, {"rank": 2}),
    "c3a": (families.c3a(), {"sizes": {"o2": 8, "i2": 8}}),
    "magnitude": (magnitude(families.lora()), {"rank": 2}),
}


def explicit() -> None:
    """`apply` on an explicit mesh, with x and every factor split on the in axis, or the factor with out on that."""
    weights = stack()
    leaves = find(weights)
    x = normal(9, 4, 6, D)
    mesh = mesh_of(AxisType.Explicit)
    for name, (spec, options) in EXPLICIT.items():
        adapter = spec.bind(leaves.sites, **options)
        params = started(adapter, leaves, weights)

        def loss(params, x, adapter=adapter, **options):
            y = tnadapt_jax.apply(adapter, params, "layers.1.up", x, **options)
            return (y**2).sum(), y

        wanted = jax.jit(jax.grad(loss, has_aux=True, argnums=(0, 1)))(params, x)
        for rules, asked in (
            ({"in": "tensor", "out": "fsdp"}, None),  # row-parallel, with a sum over split axes
            ({"in": "data", "out": "tensor"}, None),  # column-parallel; the factor is split as x's leading axis is
            ({"in": "tensor"}, PartitionSpec("data", "tensor", None)),
        )[: 3 if name == "lotr" else 2]:
            split = jax.device_put(params, by_mode(adapter, mesh, rules))
            split_x = jax.device_put(x, at(mesh, "data", None, "tensor" if rules["in"] == "tensor" else None))
            with jax.set_mesh(mesh):
                step = jax.jit(jax.grad(partial(loss, out_sharding=asked), has_aux=True, argnums=(0, 1)))
                found = step(split, split_x)
            expect_equal(found, wanted)
            if name == "lotr":
                assert found[1].sharding.spec == (asked or PartitionSpec("data", None, rules["out"])), found[1].sharding


def explicit_block(x, layer):
    """A column-parallel weight and a row-parallel one, whose sum is not split."""
    h = jax.nn.relu(x @ layer["up"]["kernel"])
    row = PartitionSpec("data", None, None) if jax.sharding.get_abstract_mesh().axis_names else None
    return x + jnp.einsum("bti,io->bto", h, layer["v"]["kernel"], out_sharding=row)


def explicit_adapted() -> None:
    """`adapt` on an explicit mesh, with products of the host that say how they are split."""
    mesh, weights = mesh_of(AxisType.Explicit), stack()
    leaves = find(weights, ("up", "v"))
    x = normal(9, 4, 6, D)
    where = {name: at(mesh, None, *own) for name, own in {"up": (None, "tensor"), "v": ("tensor", None)}.items()}
    weights = {"layers": {name: weights["layers"][name] for name in where}}

    def model(weights, x):
        return lax.scan(lambda x, layer: (explicit_block(x, layer), None), x, weights["layers"])[0]

    for family in (families.lotr, families.vera):
        adapter = family().bind(leaves.sites, rank=2)
        params = started(adapter, leaves, weights)
        run = tnadapt_jax.adapt(model, adapter, leaves, dense="refuse")

        def loss(params, weights, x, run=run):
            return (run(params, weights, x) ** 2).mean()

        wanted = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(params, weights, x)
        split = {
            "layers": {
                name: {"kernel": jax.device_put(weights["layers"][name]["kernel"], where[name])} for name in where
            }
        }
        own = jax.device_put(params, by_mode(adapter, mesh, {"out": "fsdp", "in": "tensor"}))
        with jax.set_mesh(mesh):
            step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
            expect_equal(step(own, split, jax.device_put(x, at(mesh, "data", None, None))), wanted)


CHECKS = {each.__name__: each for each in (adapted, applied, merged, explicit, explicit_adapted)}


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    failed = 0
    for what in sys.argv[1:]:
        try:
            CHECKS[what]()
        except Exception:
            failed += 1
            traceback.print_exc()
        else:
            print(f"{what}: as one device")
    sys.exit(failed)
