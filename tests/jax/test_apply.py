"""`apply` and `delta` at one site under jax transformations: traces, constants, gradients, dtypes and errors."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tnadapt
import tnadapt_jax
from tnadapt import AdapterSpec, Site, SiteError, families, frozen, grid, magnitude, normal, raw, same, trainable, zeros
from tnadapt.initializers import host

SITES = grid(layers=2, kinds={"q": (6, 4), "v": (6, 4), "up": (4, 6)})
SITE = SITES[1].path


def moved(adapter, seed=0):
    params = tnadapt_jax.init(adapter)
    keys = jax.random.split(jax.random.key(seed), len(params["trainable"]))
    named = zip(params["trainable"].items(), keys, strict=True)
    return params | {"trainable": {name: jax.random.normal(key, value.shape) for (name, value), key in named}}


@pytest.fixture(scope="module")
def adapter():
    return families.vera().bind(SITES, rank=2, seed=3)


@pytest.fixture(scope="module")
def params(adapter):
    return moved(adapter)


def test_equal_adapters_share_one_trace(adapter, params):
    traces = []

    def count(adapter, params, x):
        traces.append(x.shape)
        return tnadapt_jax.apply(adapter, params, SITE, x)

    step = jax.jit(count, static_argnums=0)
    for number in range(100):
        equal = families.vera().bind(SITES, rank=2, seed=3)  # another object of the same value
        step(equal if number % 10 == 0 else adapter, params, jnp.full((2, 4), float(number)))
    assert traces == [(2, 4)]
    step(families.vera().bind(SITES, rank=2, seed=4), params, jnp.ones((2, 4)))
    assert len(traces) == 2


@pytest.mark.parametrize("width", [64, 1024])
def test_no_large_constant_is_captured(width):
    """The text of the program stays short although frozen factors and starting values take 2 MB."""
    spec = AdapterSpec(
        name="own",
        weight="out in",
        over="layer",
        factors={"A": trainable("out p"), "F": frozen("p q"), "B": trainable("in q layer")},
        scale=raw(0.5),
        start="centered",
    )
    sites = grid(layers=2, kinds={"q": (width, width)})
    for one in (families.vera(), families.tlora(), spec):
        adapter = one.bind(sites, rank=width // 4)
        params, weights = tnadapt_jax.init(adapter), {s.path: jnp.zeros(s.shape) for s in sites}
        leaves = tnadapt_jax.find_sites(weights, target=["q"], layout="out in")
        adapted = tnadapt_jax.adapt(lambda w, x: [x @ value.T for value in w.values()], adapter, leaves)

        def loss(trained, frozen, weights, x, both=(adapter, adapted)):
            params = {"trainable": trained, "frozen": frozen}
            y = tnadapt_jax.apply(both[0], params, sites[0], x)
            return y.sum() + sum(value.sum() for value in both[1](params, weights, x))

        text = jax.jit(jax.grad(loss)).lower(params["trainable"], params["frozen"], weights, jnp.ones((2, width)))
        assert len(text.as_text()) < 100_000


def test_frozen_factors_get_no_gradient_and_no_optimizer_state(adapter, params):
    def loss(params, x):
        return (tnadapt_jax.apply(adapter, params, SITE, x) ** 2).sum()

    gradient = jax.jit(jax.grad(loss))(params, jnp.ones((2, 4)))
    assert all(not value.any() for value in gradient["frozen"].values())
    assert any(value.any() for value in gradient["trainable"].values())
    state = optax.adam(1e-3).init(params["trainable"])
    moments = sum(value.size for value in jax.tree.leaves(state)) - 1  # one is the count of steps
    assert moments == 2 * tnadapt.count(adapter).trainable


def test_every_array_has_its_own_buffer_and_can_be_donated():
    spec = AdapterSpec(
        name="own",
        weight="out in",
        factors={"A": trainable("out r", init=normal()), "B": trainable("in r", init=normal())},
        scale=raw(1.0),
        start="centered",
    )
    adapter = spec.bind(SITES[:1], rank=2)
    params = tnadapt_jax.init(adapter)
    pointers = [value.unsafe_buffer_pointer() for value in jax.tree.leaves(params)]
    assert len({*pointers}) == len(pointers)
    step = jax.jit(lambda params: jax.tree.map(lambda value: value + 1.0, params), donate_argnums=0)
    assert jax.tree.leaves(step(params))[0].shape == (6, 2)


def test_vmap_works_over_x_and_over_a_batch_of_adapters(adapter, params):
    ask = partial(tnadapt_jax.apply, adapter)
    x = jax.random.normal(jax.random.key(1), (5, 3, 4))
    several = [moved(adapter, seed)["trainable"] for seed in range(5)]
    batch = {"trainable": jax.tree.map(lambda *values: jnp.stack(values), *several), "frozen": params["frozen"]}

    @jax.jit
    def all_ways(params, batch, x):
        over_x = jax.vmap(lambda x: ask(params, SITE, x))(x)
        over_adapters = jax.vmap(lambda p, x: ask(p, SITE, x), in_axes=({"trainable": 0, "frozen": None}, 0))(batch, x)
        return ask(params, SITE, x), over_x, over_adapters

    plain, over_x, over_adapters = all_ways(params, batch, x)
    np.testing.assert_allclose(over_x, plain, rtol=1e-5, atol=1e-6)
    for number, trained in enumerate(several):
        own = ask({"trainable": trained, "frozen": params["frozen"]}, SITE, x[number])
        np.testing.assert_allclose(over_adapters[number], own, rtol=1e-5, atol=1e-6)


def test_checkpoint_does_not_change_gradients(adapter, params):
    def loss(trained, x, around):
        ask = around(lambda t, x: tnadapt_jax.apply(adapter, params | {"trainable": t}, SITE, x))
        return (ask(trained, x) ** 2).sum()

    x = jnp.ones((3, 4))
    plain, again = (
        jax.jit(jax.grad(partial(loss, around=f)))(params["trainable"], x) for f in (lambda f: f, jax.checkpoint)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), plain, again)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_apply_returns_the_dtype_of_x_and_delta_returns_float32_or_wider(adapter, params, dtype):
    x = jnp.ones((2, 4), dtype)
    assert tnadapt_jax.apply(adapter, params, SITE, x).dtype == dtype
    narrow = tnadapt_jax.init(adapter, dtype=dtype)
    assert tnadapt_jax.delta(adapter, narrow, SITE).dtype == jnp.float32
    assert {value.dtype for value in jax.tree.leaves(narrow)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("lead", [(), (0,), (1,), (2, 3), (2, 1, 3)])
def test_apply_accepts_any_leading_axes(adapter, params, lead):
    x = jax.random.normal(jax.random.key(2), (*lead, 4))
    wanted = np.asarray(x) @ np.asarray(tnadapt_jax.delta(adapter, params, SITE)).T
    np.testing.assert_allclose(tnadapt_jax.apply(adapter, params, SITE, x), wanted, rtol=1e-4, atol=1e-5)


def test_a_weight_of_three_axes_agrees_with_the_reference():
    spec = AdapterSpec(
        name="own",
        weight="out in tap",
        factors={"A": trainable("out r"), "B": trainable("in tap r")},
        scale=raw(1.0),
        start="free",
    )
    adapter = spec.bind([tnadapt.Site("conv", (5, 3, 2))], rank=2)
    params, x = tnadapt_jax.init(adapter), jax.random.normal(jax.random.key(0), (7, 3, 2))
    values = {name: np.asarray(value) for name, value in params["trainable"].items()}
    wanted = tnadapt.apply(adapter, values, "conv", np.asarray(x))
    np.testing.assert_allclose(tnadapt_jax.apply(adapter, params, "conv", x), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        tnadapt_jax.delta(adapter, params, "conv"), tnadapt.delta(adapter, values, "conv"), rtol=1e-5
    )


def without(params, tree, name):
    return params | {tree: {key: value for key, value in params[tree].items() if key != name}}


def with_(params, tree, name, value):
    return params | {tree: params[tree] | {name: value}}


BAD = {
    "site": (lambda p: (p, "layers.9.q", jnp.ones((2, 4))), r"got .layers\.9\.q..*begin with layers\.0\.q"),
    "x": (
        lambda p: (p, SITE, jnp.ones((2, 5))),
        r"layers\.0\.v: expected x to end in .*\(4,\), got shape \(2, 5\)",
    ),
    "x dtype": (lambda p: (p, SITE, jnp.ones((2, 4), int)), r"layers\.0\.v: expected x of a float dtype, got int32"),
    "x scalar": (lambda p: (p, SITE, jnp.ones(())), r"layers\.0\.v: expected x to end in .*, got shape \(\)"),
    "missing": (
        lambda p: (without(p, "trainable", "0.v.b"), SITE, jnp.ones((2, 4))),
        r"params\['trainable'\]: expected the array '0\.v\.b', got none",
    ),
    "missing frozen": (
        lambda p: (without(p, "frozen", "A"), SITE, jnp.ones((2, 4))),
        r"params\['frozen'\]: expected the array 'A', got none",
    ),
    "missing tree": (
        lambda p: ({"trainable": p["trainable"]}, SITE, jnp.ones((2, 4))),
        r"params\['frozen'\]: expected the array 'A', got none",
    ),
    "extra": (
        lambda p: (with_(p, "frozen", "Z", jnp.ones(2)), SITE, jnp.ones((2, 4))),
        r"params\['frozen'\]: expected only arrays of this adapter, got 'Z'.*Its arrays there are A, B",
    ),
    "renamed": (
        lambda p: (with_(without(p, "frozen", "A"), "frozen", "Z", jnp.ones(2)), SITE, jnp.ones((2, 4))),
        r"params\['frozen'\]: expected the array 'A', got none",
    ),
    "another tree": (
        lambda p: (p | {"other": {}}, SITE, jnp.ones((2, 4))),
        r"params: expected only 'trainable' and 'frozen', got 'other' too",
    ),
    "shape": (
        lambda p: (with_(p, "trainable", "0.v.b", jnp.ones(5)), SITE, jnp.ones((2, 4))),
        r"params\['trainable'\]\['0\.v\.b'\]: expected shape \(6,\), got \(5,\)",
    ),
}


@pytest.mark.parametrize(("ask", "message"), BAD.values(), ids=BAD)
def test_invalid_arguments_are_rejected_before_tracing(adapter, params, ask, message):
    asked = ask(params)
    with pytest.raises(SiteError, match=re.compile(message, re.DOTALL)), jax.no_tracing():
        tnadapt_jax.apply(adapter, *asked)


@pytest.mark.parametrize("doubles", [(), ("A",), ("B",), ("A", "B")], ids=str)
def test_a_delta_is_computed_in_the_widest_dtype_of_its_factors(doubles):
    adapter = families.lora().bind([SITES[0]], rank=2)
    with jax.enable_x64(True):
        values = {
            name: jnp.full(slot.shape, 0.1, np.float64 if name in doubles else np.float32)
            for name, slot in adapter.slots.items()
        }
        found = tnadapt_jax.delta(adapter, {"trainable": values, "frozen": {}}, SITES[0])
    assert found.dtype == (np.float64 if doubles else np.float32)


TURNED = AdapterSpec(  # the product of the layer, turned, less itself
    name="turned",
    weight="out in",
    factors={
        "R": trainable("out a", init=zeros(), map="cayley"),
        "W2": same("W", "a in"),
        "W": frozen("out in", init=host()),
    },
    terms=["R W2", "- W"],
    scale=raw(0.5),
    start="free",
)


READERS = (TURNED, magnitude(TURNED), magnitude(families.lora()), families.oft(), families.lora())


@pytest.mark.parametrize("spec", READERS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_the_product_of_the_layer_changes_nothing_but_the_work(spec, lead):
    sizes = {"i": 4} if spec.name == "oft" else None
    adapter = spec.bind([Site("q", (8, 8))], rank=2 if spec.free_bonds else None, sizes=sizes)
    random = np.random.default_rng(0)
    weight = random.standard_normal((8, 8)).astype(np.float32)
    params = tnadapt_jax.init(adapter, weights={"q": weight})
    trained = {
        name: jnp.asarray(random.standard_normal(value.shape), value.dtype)
        for name, value in params["trainable"].items()
    }
    params = params | {"trainable": trained}
    x = jnp.asarray(random.standard_normal((*lead, 8)), jnp.float32)
    wanted = tnadapt_jax.apply(adapter, params, "q", x)
    np.testing.assert_allclose(tnadapt_jax.apply(adapter, params, "q", x, product=x @ weight.T), wanted, atol=2e-5)
    np.testing.assert_allclose(wanted, x @ tnadapt_jax.delta(adapter, params, "q").T, atol=2e-5)


def test_a_product_that_does_not_fit_is_refused():
    adapter = TURNED.bind([Site("q", (8, 8))])
    params = tnadapt_jax.init(adapter, weights={"q": np.eye(8)})
    with pytest.raises(SiteError, match=r"q: expected a product of shape \(3, 8\), got \(3, 7\)"):
        tnadapt_jax.apply(adapter, params, "q", jnp.ones((3, 8)), product=jnp.ones((3, 7)))
