"""The results of the JAX binding: site by site, in a scan over layers, and from stacked weights."""

import jax
import jax.numpy as jnp
import numpy as np

import tnadapt_jax
from tests.parity.sides import Answers, Questions
from tnadapt import Adapter
from tnadapt.binding import Params
from tnadapt_jax._params import tree_of


def layers_of(adapter: Adapter) -> list[int]:
    return sorted({site.coordinates["layer"] for site in adapter.sites})


def paths_of(adapter: Adapter) -> dict[str, list[str]]:
    """Return the paths of each kind, layer by layer."""
    return {
        kind: [
            site.path
            for layer in layers_of(adapter)
            for site in adapter.sites
            if site.coordinates["kind"] == kind and site.coordinates["layer"] == layer
        ]
        for kind in dict.fromkeys(site.coordinates["kind"] for site in adapter.sites)
    }


def by_site(adapter, params, xs):
    return {path: tnadapt_jax.apply(adapter, params, path, x) for path, x in xs.items()}


def by_scan(adapter, params, xs):
    shared, per_layer = tnadapt_jax.scan_split(adapter, params)
    paths = paths_of(adapter)

    def body(carry, inputs):
        layer, x = inputs
        return carry, {
            kind: tnadapt_jax.apply_in_layer(adapter, shared, layer, kind, value) for kind, value in x.items()
        }

    stacked = {kind: jnp.stack([xs[path] for path in some]) for kind, some in paths.items()}
    _, ys = jax.lax.scan(body, None, (per_layer, stacked))
    return {path: ys[kind][at] for kind, some in paths.items() for at, path in enumerate(some)}


def stacked_deltas(adapter, params, dtype):
    """Return the updates, by merging them into zero weights (out, in) that are stacked by layer."""
    paths = paths_of(adapter)
    shapes = {site.path: site.shape for site in adapter.sites}
    weights = {kind: jnp.zeros((len(some), *shapes[some[0]]), dtype) for kind, some in paths.items()}
    found = tnadapt_jax.find_sites(weights, target=list(paths), layout="out in", layer_axis=0)
    places = {paths[leaf.path][leaf.index]: leaf for leaf in found.entries}
    entries = [
        tnadapt_jax.Leaf(site, leaf.path, leaf.roles, leaf.shape, leaf.axis, leaf.index)
        for site in adapter.sites
        for leaf in [places[site.path]]
    ]
    merged = tnadapt_jax.merge(adapter, params, weights, tnadapt_jax.Leaves(tuple(entries)))
    return {path: merged[kind][at] for kind, some in paths.items() for at, path in enumerate(some)}


WAYS = {"site": by_site, "scan": by_scan}


def by_jax(adapter: Adapter, values: Params, asked: Questions, dtype, ways=tuple(WAYS)) -> dict[str, Answers]:
    """Return the answers by "site", and by "scan" with the updates of stacked weights; check frozen gradients for 0.

    All answers come from one compilation, since compiling dominates the time of these tests.
    """
    params = tree_of(adapter, values, dtype)
    xs, gs = ({path: jnp.array(value, dtype=dtype) for path, value in some.items()} for some in asked)
    wide = jnp.float32 if dtype == jnp.bfloat16 else dtype

    @jax.jit
    def ask(params, xs, gs):
        found = {}
        for name in ways:
            ys, pull = jax.vjp(lambda p, x, way=WAYS[name]: way(adapter, p, x), params, xs)
            found[name] = (ys, pull(gs))
        deltas = {}
        if "site" in ways:
            deltas["site"] = {site.path: tnadapt_jax.delta(adapter, params, site) for site in adapter.sites}
        if "scan" in ways:
            deltas["scan"] = stacked_deltas(adapter, params, wide)
        return found, deltas

    found, deltas = jax.tree.map(lambda value: np.asarray(value).astype(float), ask(params, xs, gs))
    answers = {}
    for name, (ys, (of_params, of_x)) in found.items():
        assert not any(value.any() for value in of_params["frozen"].values())
        answers[name] = Answers(ys, deltas[name], of_x, of_params["trainable"])
    return answers
