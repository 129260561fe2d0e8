"""Rite and Preconditioned take the same steps in both frameworks; in JAX too they do not see how an update is split."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("optax")

import jax
import numpy as np
import optax
import torch

import tnadapt
from tests.descent import Task, apart, begin, moved, rate_of, walk
from tests.gauge import turned
from tests.jax.steps import JaxRule
from tests.table import FAMILIES
from tests.thorough import IS_THOROUGH
from tests.torch.steps import TorchRule
from tnadapt import AdapterSpec, Site, grid, raw, trainable
from tnadapt_jax import optim as ours_jax
from tnadapt_torch import optim as ours_torch

KINDS = {"q": (6, 4), "v": (6, 4), "up": (4, 6)}
PAIRED = ["lora", "pissa", "loha", "gralora hybrid", "btt", "mtlora_tasks"]
REGULAR = ["lora", "lotr", "metatt", "lorta", "tt_lora", "cp"]
OTHERS = ["lora frozen a", "tt_lora centered", "vera", "tera", "quanta", "flora", "randlora", "superlora"]


@pytest.fixture(autouse=True)
def strict():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.parametrize("name", PAIRED if IS_THOROUGH else ["pissa", "mtlora_tasks"])
def test_rite(name):
    adapter = FAMILIES[name].bind(layers=2, kinds=KINDS)
    task = Task(adapter)
    options = {"lr": 1e-2, "clip": 0.5, "skip": 0.3, "weight_decay": 0.01}
    for params in (moved(adapter), begin(adapter)):
        torch_path, _ = walk(task, params, TorchRule(adapter, params, lambda s: ours_torch.Rite(s, **options)), 10)
        rule = JaxRule(adapter, params, lambda one: ours_jax.Rite(one, **options))
        jax_path, losses = walk(task, params, rule, 10)
        assert apart(torch_path, jax_path) < 1e-10
        assert np.isfinite(losses).all()
    params, options = moved(adapter), {"lr": 1e-2}
    one, two = (
        walk(task, start, JaxRule(adapter, start, lambda each: ours_jax.Rite(each, lr=1e-2)), 10)[0]
        for start in (params, turned(adapter, params))
    )
    assert apart(one, two) < 1e-10


@pytest.mark.parametrize("name", REGULAR if IS_THOROUGH else ["lotr", "tt_lora"])
def test_preconditioned(name):
    check(FAMILIES[name].bind(layers=2, kinds={"q": (6, 4), "v": (6, 4)}), sees_no_split=True)


@pytest.mark.parametrize("name", OTHERS if IS_THOROUGH else ["tt_lora centered", "vera", "flora"])
def test_preconditioned_with_frozen_factors_and_several_groups(name):
    check(FAMILIES[name].bind(layers=2, kinds=KINDS))


def test_preconditioned_where_sites_are_missing():
    places = [Site(f"{n}.{kind}", (4, 4), {"layer": n, "kind": kind}) for n, kind in ((0, "q"), (1, "q"), (1, "v"))]
    case = FAMILIES["lorta"]
    check(case.spec.bind(places, rank=2, sizes={"head": 2}), sees_no_split=True)
    factors = {"A": trainable("in r"), "B": trainable("out r"), "K": trainable("kind r")}
    own = AdapterSpec(name="own", weight="out in", over="layer kind", factors=factors, scale=raw(0.5), start="free")
    for sites in (places, grid(layers=3, kinds={"q": (4, 4), "v": (4, 4)})):
        check(own.bind(sites, rank=2))
    check(FAMILIES["lorta alone"].spec.bind(grid(layers=1, kinds={"q": (4, 4)}), rank=1, sizes={"head": 2}))


def check(adapter, *, sees_no_split=False):
    task, params, lr = Task(adapter), moved(adapter), rate_of(adapter) / 10

    def in_jax(damping):
        return lambda one: optax.chain(ours_jax.Preconditioned(one, damping=damping), optax.sgd(lr, momentum=0.9))

    def in_torch(state):
        return ours_torch.Preconditioned(state, torch.optim.SGD(state.parameters(), lr, momentum=0.9), damping=1e-3)

    torch_path, losses = walk(task, params, TorchRule(adapter, params, in_torch), 5)
    jax_path, _ = walk(task, params, JaxRule(adapter, params, in_jax(1e-3)), 5)
    assert apart(torch_path, jax_path) < 1e-10
    assert losses[-1] < losses[0]
    if sees_no_split:
        starts = (params, turned(adapter, params))
        one, two = (walk(task, start, JaxRule(adapter, start, lambda each: plain(each, lr)), 10)[0] for start in starts)
        assert apart(one, two) < 1e-10


def plain(adapter, lr):
    return optax.chain(ours_jax.Preconditioned(adapter, damping=0), optax.sgd(lr))


@pytest.mark.skipif(not hasattr(tnadapt, "magnitude"), reason="magnitude is not there yet")
def test_a_magnitude_is_in_no_term_and_takes_plain_steps():
    spec = tnadapt.magnitude(tnadapt.families.lora())
    adapter = spec.bind(grid(layers=1, kinds={"q": (6, 5)}), rank=2)
    random = np.random.default_rng(0)
    held = begin(adapter)
    params = {name: random.standard_normal(slot.shape) for name, slot in adapter.slots.items()}
    grads = [{name: random.standard_normal(value.shape) / 9 for name, value in params.items()} for _ in range(3)]
    options = {"lr": 1e-2, "weight_decay": 0.1}
    rules = [
        TorchRule(adapter, held | params, lambda s: ours_torch.Rite(s, **options)),
        JaxRule(adapter, held | params, lambda one: ours_jax.Rite(one, **options)),
    ]
    found = [params, params]
    plain = torch.nn.Parameter(torch.tensor(params["magnitude"]))
    adam = torch.optim.AdamW([plain], lr=1e-2, eps=1e-6, weight_decay=0.1)
    for each in grads:
        found = [rule(values, each) for rule, values in zip(rules, found, strict=True)]
        plain.grad = torch.tensor(each["magnitude"])
        adam.step()
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found[0]["magnitude"], plain.detach().numpy(), rtol=1e-10)
    given = grads[0]

    def in_torch(state):
        return ours_torch.Preconditioned(state, torch.optim.SGD(state.parameters(), 1.0), damping=0.1)

    def in_jax(one):
        return optax.chain(ours_jax.Preconditioned(one, damping=0.1), optax.sgd(1.0))

    rules = TorchRule(adapter, held | params, in_torch), JaxRule(adapter, held | params, in_jax)
    changed = [rule(params, given) for rule in rules]
    for values in changed:
        np.testing.assert_allclose(values["magnitude"], params["magnitude"] - given["magnitude"], rtol=1e-12)
        assert np.abs(values["A"] - params["A"] + given["A"]).max() > 0.01
