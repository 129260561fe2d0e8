"""Random functions of one weight, moved and multiplied in random ways: `adapt` = the function of merged weights."""

from dataclasses import dataclass
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

import tnadapt_jax
from tests.jax import test_adapt_uses
from tests.jax.functions import normal
from tests.jax.oracle import summed_by_numpy, summed_by_site
from tests.jax.uses import USES
from tests.thorough import IS_THOROUGH
from tnadapt import families
from tnadapt_jax._walk import layout, program

STORED = {
    "in out": {"layout": "in out"},
    "layer in out": {"layout": "in out", "layer_axis": 0},
    "out layer in": {"layout": "out in", "layer_axis": 1},
    "in in out out": {"layout": "in in out out"},
    "layer expert out in": {"layout": "expert out in", "layer_axis": 0},
    "expert in out layer": {"layout": "expert in out", "layer_axis": -1},
}
SIZES = {"in": 4, "out": 6, "layer": 2, "expert": 2}
LETTERS = "abcdefgh"
EXAMPLES = max(1, settings().max_examples // (10 if IS_THOROUGH else 3))


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


@dataclass(frozen=True)
class Walk:
    """Moves of the weight, each a name and its numbers; the kind of each axis at the end; how the product is made."""

    stored: str
    moves: tuple
    roles: str  # for each axis at the end: "s"ummed, "b"atch or "f"ree
    way: str

    def __call__(self, weights, x):
        w = weights["w"]
        for name, at in self.moves:
            w = MOVES[name](w, at)
        product = self.equation()
        if self.way == "scan" and w.ndim > 1 and self.roles[0] == "b":
            each = product.replace("a", "")
            return lax.scan(lambda total, one: (total + 1, jnp.einsum(each, *one)), 0.0, (w, x[: len(w)]))[1]
        return jnp.einsum(product, w, x)

    def equation(self):
        letters = LETTERS[: len(self.roles)]
        in_x = "".join(one for one, role in zip(letters, self.roles, strict=True) if role != "f")
        batch = "".join(one for one, role in zip(letters, self.roles, strict=True) if role == "b")
        free = "".join(one for one, role in zip(letters, self.roles, strict=True) if role == "f")
        return f"{letters},{in_x}z->{batch}z{free}"


MOVES = {
    "transpose": lambda w, at: jnp.transpose(w, np.random.default_rng(at).permutation(w.ndim).tolist()),
    "split": lambda w, at: split(w, at % w.ndim),
    "join": lambda w, at: w if w.ndim < 2 else join(w, at % (w.ndim - 1)),
    "add": lambda w, at: jnp.expand_dims(w, at % (w.ndim + 1)) if w.ndim < 6 else w,
    "first": lambda w, at: w[at % len(w)] if w.ndim > 2 else w,
    "some": lambda w, at: w[: max(1, len(w) - 1)],
    "any": lambda w, at: (
        lax.dynamic_index_in_dim(w, jnp.int32(at % len(w)), 0, keepdims=at % 2 == 0) if w.ndim > 2 else w
    ),
    "barrier": lambda w, at: lax.optimization_barrier(w),
}


def split(w, axis):
    size = w.shape[axis]
    part = next((n for n in (2, 3) if size % n == 0), None)
    if part is None or w.ndim > 5:
        return w
    return w.reshape(*w.shape[:axis], part, size // part, *w.shape[axis + 1 :])


def join(w, axis):
    return w.reshape(*w.shape[:axis], prod(w.shape[axis : axis + 2]), *w.shape[axis + 2 :])


def shape_of(walk):
    w = jnp.zeros([SIZES[word] for word in walk.stored.split()])
    for name, at in walk.moves:
        w = MOVES[name](w, at)
    return w.shape


@st.composite
def walks(draw):
    stored = draw(st.sampled_from([*STORED]))
    names = st.sampled_from(["transpose", "split", "join", "add", "first", "some", "any", "barrier"])
    moves = draw(st.lists(st.tuples(names, st.integers(0, 11)), max_size=5))
    walk = Walk(stored, tuple(moves), "", draw(st.sampled_from(["einsum", "scan"])))
    shape = shape_of(walk)
    # most walks should end in a product that sums the in axes
    roles = []
    for axis in range(len(shape)):
        kinds = {kind for kind in ("in", "out", "lead") if depends(walk, stored, axis, kind)}
        usual = "s" if kinds == {"in"} else "f" if kinds == {"out"} else draw(st.sampled_from("bfs"))
        roles.append(draw(st.sampled_from([usual] * 6 + ["b", "f", "s"])))
    return Walk(stored, walk.moves, "".join(roles), walk.way)


def depends(walk, stored, axis, kind):
    """Whether the numbers along an axis differ in their place along the stored axes of a kind."""
    words = stored.split()
    whole = np.zeros([SIZES[word] for word in words])
    for at, word in enumerate(words):
        if word == kind or (kind == "lead" and word in ("layer", "expert")):
            whole = whole * 8 + np.arange(SIZES[word]).reshape([-1 if n == at else 1 for n in range(len(words))])
    moved = jnp.asarray(whole)
    for name, at in walk.moves:
        moved = MOVES[name](moved, at)
    return bool(np.ptp(np.asarray(moved), axis).any())


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(walk=walks(), seed=st.integers(0, 3))
def test_a_random_walk(walk, seed):
    words = walk.stored.split()
    weights = {"w": normal(seed, *(SIZES[word] for word in words))}
    leaves = tnadapt_jax.find_sites(weights, target=["w"], **STORED[walk.stored])
    adapter = (families.lora, families.lotr)[seed % 2]().bind(leaves.sites, rank=2, seed=seed)
    params = tnadapt_jax.init(adapter, dtype=jnp.float64)
    random = np.random.default_rng(seed)
    moved = {n: v + jnp.asarray(random.standard_normal(v.shape)) / 4 for n, v in params["trainable"].items()}
    params = params | {"trainable": moved}
    shape = [size for size, role in zip(shape_of(walk), walk.roles, strict=True) if role != "f"]
    x = normal(9, *shape, 3)
    adapted = tnadapt_jax.adapt(walk, adapter, leaves)
    if IS_THOROUGH:

        def loss(run, params):
            made = run(params, weights, x)
            return jnp.sum(jnp.sin(made) * normal(8, *made.shape))

        def by_site(params, weights, x):
            return walk(summed_by_site(adapter, params, weights, leaves), x)

        found, wanted = (jax.jit(jax.grad(lambda p, run=run: loss(run, p)))(params) for run in (adapted, by_site))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)
    made = jax.jit(adapted)(params, weights, x)
    np.testing.assert_allclose(made, walk(summed_by_numpy(adapter, params, weights, leaves), x), rtol=0, atol=1e-10)


PLACES = {
    "scan": "scan that hands weights on",
    "cond": "switch on a weight",
    "while": "while",
    "remat2": "remat in scan in remat",
    "dot_general": "twice",
    "jit": "static argument",
    "transpose": "transposed, on the left",
    "reshape": "map of layers in batches",
    "slice": "some layers",
    "dynamic_slice": "while",
    "squeeze": "convolution",
}


@pytest.mark.parametrize("name", PLACES)
def test_an_operation_that_another_jax_describes_otherwise_gets_a_matrix(name, monkeypatch):
    """As if a parameter had another name: never an exception, and never without the update."""
    table = program.FOLLOWED if name in program.FOLLOWED else layout.MOVES
    monkeypatch.setitem(table, name, (*table[name], "called otherwise"))
    use = USES[PLACES[name]]
    weights, leaves, adapter, params = test_adapt_uses.bound(use)
    x = normal(9, 5, 8)
    assert f"dW: {name}" in str(tnadapt_jax.explain(use.call, adapter, leaves)(params, weights, x))
    found = jax.jit(tnadapt_jax.adapt(use.call, adapter, leaves))(params, weights, x)
    wanted = use.call(summed_by_numpy(adapter, params, weights, leaves), x)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)
