"""The traced operations are those of the plan: its order, its flops in both passes, no large transposes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal

import tnadapt_jax
from tests.table import FAMILIES, REPRESENTATIVES
from tnadapt import AdapterSpec, families, grid, plan, raw, trainable

KINDS = {"q": (12, 8)}
SITES = grid(layers=2, kinds=KINDS)
CASES = [  # without centered ones, which are contracted twice, and without maps, which take further flops
    family
    for family in families.__all__
    if FAMILIES[family].is_linear
    and FAMILIES[family].spec.start != "centered"
    and not any(factor.map for factor in FAMILIES[family].spec.factors.values())
]


def products(jaxpr):
    """Yield the flops of each dot_general and each entrywise product, as the plan counts them; literals are free."""
    for equation in jaxpr.eqns:
        shape = equation.outvars[0].aval.shape
        if equation.primitive.name == "dot_general":
            (left, _), _ = equation.params["dimension_numbers"]
            summed = np.prod([equation.invars[0].aval.shape[axis] for axis in left], dtype=int)
            yield 2 * int(np.prod(shape, dtype=int) * summed)
        elif equation.primitive.name == "mul" and not any(isinstance(side, Literal) for side in equation.invars):
            yield int(np.prod(shape, dtype=int))
        for value in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, "eqns")):
            if hasattr(inner := getattr(value, "jaxpr", value), "eqns"):
                yield from products(inner)


@pytest.mark.parametrize(
    ("family", "tokens"),
    [(family, 6) for family in CASES]
    + [(family, tokens) for family in CASES if family in REPRESENTATIVES for tokens in (1, 100)],
)
def test_the_flops_of_both_passes_equal_those_of_the_plan(family, tokens, started):
    adapter = FAMILIES[family].bind(layers=2, kinds=KINDS)
    params, x = started(adapter), jnp.ones((tokens, 8))
    order = plan(adapter.networks[0], "apply", tokens=tokens)
    forward = jax.make_jaxpr(lambda p, x: tnadapt_jax.apply(adapter, p, SITES[1], x))(params, x)
    assert sum(products(forward.jaxpr)) == order.forward_flops

    def both(params, x, gradient):
        y, pull = jax.vjp(lambda p, x: tnadapt_jax.apply(adapter, p, SITES[1], x), params, x)
        return y, pull(gradient)

    passes = jax.make_jaxpr(both)(params, x, jnp.ones((tokens, 12)))
    assert sum(products(passes.jaxpr)) == order.forward_flops + order.backward_flops


def test_the_order_depends_on_the_exact_number_of_tokens():
    adapter = families.lora().bind(grid(layers=1, kinds={"q": (64, 64)}), rank=48)
    params = tnadapt_jax.init(adapter)
    for tokens in (1, 30, 4096):
        jaxpr = jax.make_jaxpr(lambda x: tnadapt_jax.apply(adapter, params, adapter.sites[0], x))(
            jnp.ones((tokens, 64))
        )
        assert sum(products(jaxpr.jaxpr)) == plan(adapter.networks[0], tokens=tokens).forward_flops


def test_leading_axes_are_not_reshaped():
    """A reshape would lose their shardings; only a split axis of the weight is reshaped."""
    adapter = families.lora().bind(SITES, rank=3)
    params = tnadapt_jax.init(adapter)
    jaxpr = jax.make_jaxpr(lambda x: tnadapt_jax.apply(adapter, params, SITES[0], x))(jnp.ones((2, 5, 8)))
    assert "reshape" not in str(jaxpr)
    assert "transpose" not in str(jaxpr)


TURNED = AdapterSpec(
    name="own",
    weight="(o1 o2) in",
    factors={"A": trainable("o2 r o1"), "B": trainable("in r")},
    scale=raw(1.0),
    start="free",
)


@pytest.mark.parametrize(
    ("spec", "sizes"), [(families.lorta(), {"head": 2}), (TURNED, {"o1": 2})], ids=["a product", "a factor"]
)
def test_only_small_arrays_are_transposed(spec, sizes):
    """LoRTA's product of heads and head sizes has them in reverse order; it is transposed, not the activations."""
    adapter = spec.bind(SITES, rank=3, sizes=sizes)
    params = tnadapt_jax.init(adapter)
    jaxpr = jax.make_jaxpr(lambda p, x: tnadapt_jax.apply(adapter, p, SITES[0], x))(params, jnp.ones((100, 8)))
    turned = [equation for equation in jaxpr.jaxpr.eqns if equation.primitive.name == "transpose"]
    assert turned
    assert all(equation.outvars[0].aval.size <= 12 * 3 for equation in turned)


def test_an_activation_between_two_products_is_not_transposed():
    spec = AdapterSpec(
        name="own",
        weight="(o1 o2) (i1 i2)",
        factors={"A": trainable("o1 i1"), "B": trainable("o2 i2")},
        scale=raw(1.0),
        start="free",
    )
    adapter = spec.bind(SITES, sizes={"o1": 2, "i1": 2})
    params = tnadapt_jax.init(adapter)
    jaxpr = jax.make_jaxpr(lambda p, x: tnadapt_jax.apply(adapter, p, SITES[0], x))(params, jnp.ones((2, 8)))
    assert sum(equation.primitive.name == "dot_general" for equation in jaxpr.jaxpr.eqns) == 2  # x with A, then with B
    assert "transpose" not in str(jaxpr)


def test_the_scale_multiplies_the_smallest_factor_unless_it_is_one():
    spec = AdapterSpec(
        name="own",
        weight="out in",
        factors={"A": trainable("out r"), "s": trainable("r"), "B": trainable("in r")},
        scale=raw(1.0),
        start="free",
    )
    for alpha, wanted in ((1.0, []), (0.5, [(3,)])):
        adapter = spec.bind(SITES, rank=3, alpha=alpha)
        params = tnadapt_jax.init(adapter)
        jaxpr = jax.make_jaxpr(lambda p, x, a=adapter: tnadapt_jax.apply(a, p, SITES[0], x))(params, jnp.ones((5, 8)))
        scaled = [e.outvars[0].aval.shape for e in jaxpr.jaxpr.eqns if any(isinstance(v, Literal) for v in e.invars)]
        assert scaled == wanted
