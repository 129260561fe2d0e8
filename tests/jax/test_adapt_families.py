"""`adapt` = the function of merged weights for every family, where each weight is used in several ways.

Merged are the updates of `tnadapt_jax.delta`, site by site, and the values of numpy's; see tests/jax/oracle.py.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tnadapt_jax
from tests.jax.functions import normal
from tests.jax.oracle import summed_by_numpy, summed_by_site
from tests.table import FAMILIES, Case, places
from tests.thorough import IS_THOROUGH
from tnadapt import families, magnitude, masked

LAYERS, EXPERTS, TASKS = 2, 2, ("one", "two")
WRAPPED = {
    "dora": Case(magnitude(families.lora()), 2),
    "dora of lotr": Case(magnitude(families.lotr()), 2),
    "masked": Case(masked(families.lora()), 2),
    "masked tt": Case(masked(families.tt_lora(out_order=1, in_order=2)), 2),
}
CASES = {name: case for name, case in {**FAMILIES, **WRAPPED}.items() if len(case.spec.axes) == 2}  # no kernels here
# One of each kind for every run; `make laws` has them all.
SOME = (
    "lotr",
    "householder",
    "dora",
    "c3a rectangular",
)
IN_OTHERS = [("lotr", "experts")]  # the others only in the cheapest function


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def read(weights, x):
    """Each way in which a weight enters: a product, one with its transpose, and something else."""
    h = jnp.tanh(x @ weights["up"])
    return h @ weights["up"].T + h @ weights["down"] + weights["down"][:1]


def in_loop(weights, x):
    for n in range(LAYERS):
        x = read({kind: weights[kind][n] for kind in weights}, x)
    return x


def in_scan(weights, x):
    return jax.lax.scan(lambda x, layer: (read(layer, x), None), x, weights)[0]


def of_experts(weights, x):
    """The experts are the first axis, the layers the last."""
    for n in range(LAYERS):
        h = jnp.tanh(jnp.einsum("td,edf->etf", x, weights["up"][..., n]))
        x = jnp.einsum("etf,efd->td", h, weights["down"][..., n]) + jnp.sum(weights["up"][0, 0, :, n])
    return x


FUNCTIONS = {
    "loop": (in_loop, (LAYERS,), (), {"layout": "in out", "layer_axis": 0}),
    "scan": (in_scan, (LAYERS,), (), {"layout": "in out", "layer_axis": 0}),
    "experts": (of_experts, (EXPERTS,), (LAYERS,), {"layout": "expert in out", "layer_axis": 3}),
}


def bound(case, lead, trail, options):
    shapes = {site.coordinates["kind"]: site.shape for site in places(case.spec, layers=1, kinds=KINDS)}
    weights = {kind: normal(at, *lead, *reversed(shapes[kind]), *trail) + 0.1 for at, kind in enumerate(KINDS)}
    tasks = TASKS if "task" in case.spec.site_modes else ()
    leaves = tnadapt_jax.find_sites(weights, target=[*KINDS], tasks=tasks, **options)
    adapter = case.spec.bind(leaves.sites, rank=case.rank, sizes=case.sizes, seed=0, overparametrized=True)
    params = tnadapt_jax.init(
        adapter, dtype=jnp.float64, weights=leaves.read(weights) if adapter.reads_weights else None
    )
    random = np.random.default_rng(1)
    moved = {n: v + jnp.asarray(random.standard_normal(v.shape)) / 4 for n, v in params["trainable"].items()}
    return weights, leaves, adapter, params | {"trainable": moved}, tasks[-1] if tasks else None


KINDS = {"up": (6, 4), "down": (4, 6)}


def chosen():
    """All pairs in the profile of `make laws`, and enough to see each kind in the others."""
    every = CASES if IS_THOROUGH else SOME
    pairs = [(name, one) for name in every for one in FUNCTIONS]
    return pairs if IS_THOROUGH else [(name, one) for name, one in pairs if one == "scan"] + IN_OTHERS


@pytest.mark.parametrize(("name", "function"), chosen())
def test_an_adapted_function_is_that_of_merged_weights(name, function):
    call, *shape = FUNCTIONS[function]
    weights, leaves, adapter, params, task = bound(CASES[name], *shape)
    x = normal(9, 3, weights["up"].shape[1])
    adapted = tnadapt_jax.adapt(call, adapter, leaves, task=task)

    def by_site(params, weights, x):
        return call(summed_by_site(adapter, params, weights, leaves, task), x)

    def loss(run, params, weights, x):
        made = run(params, weights, x)
        return jnp.sum(jnp.sin(made) * normal(8, *made.shape))

    found, wanted = (
        jax.jit(jax.value_and_grad(partial(loss, run), argnums=(0, 1, 2)))(params, weights, x)
        for run in (adapted, by_site)
    )
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        close = 1e-10 * max(1, float(jnp.max(jnp.abs(other))))
        np.testing.assert_allclose(one, other, rtol=0, atol=close, err_msg=jax.tree_util.keystr(path))
    assert abs(float(found[0] - loss(lambda params, weights, x: call(weights, x), params, weights, x))) > 1e-4

    merged = tnadapt_jax.merge(adapter, params, weights, leaves, task=task)
    for kind, value in summed_by_numpy(adapter, params, weights, leaves, task).items():
        np.testing.assert_allclose(merged[kind], value, rtol=0, atol=1e-10)
