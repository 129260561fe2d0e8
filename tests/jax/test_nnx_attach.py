"""`attach` of nnx: new adapters and given ones, several layouts in one call, arguments that contradict each other."""

import pytest

pytest.importorskip("flax")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tnadapt_jax
from tests.jax.hosts import HOSTS, UP_DOWN, Mlp
from tnadapt import SiteError, families
from tnadapt_jax.nnx import attach, weights_of


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # the models are in float64
        yield


X = jax.random.normal(jax.random.key(9), (2, 8), jnp.float32)


def model_of(name="mlp"):
    return HOSTS[name].make(nnx.Rngs(0))


def test_one_call_takes_several_layouts_a_fused_weight_and_blocks():
    model = model_of("gemma")
    parts = {"kv_einsum.w": {"k": 8, "v": 8}}
    adapted = attach(model, families.lora(), rank=2, fused=parts, blocks={"up_proj": (2, 1)}, **HOSTS["gemma"].find)
    paths = [site.path for site in adapted.adapter.sites if site.path.startswith("layers.0.")]
    assert {*paths} == {
        *(f"layers.0.{name}" for name in ("attn_vec_einsum.w", "q_einsum.w", "gate_proj", "down_proj")),
        *(f"layers.0.kv_einsum.w[{part}]" for part in "kv"),
        *(f"layers.0.up_proj[{block}]" for block in (0, 1)),
    }
    assert len({leaf.roles for leaf in adapted.leaves.entries}) == 4


def test_an_adapter_from_a_file_is_attached_with_its_values(tmp_path):
    adapted = attach(model_of(), "lotr", rank=2, **UP_DOWN)
    for variable in adapted.trainable.values():
        variable[...] += 0.1
    tnadapt_jax.save(adapted.adapter, adapted.params(), tmp_path / "lotr.safetensors")
    adapter, params = tnadapt_jax.load(tmp_path / "lotr.safetensors")
    by_target = attach(adapted.model, adapter, params=params, **UP_DOWN)
    by_leaves = attach(adapted.model, adapter, params=params, leaves=adapted.leaves)
    for again in (by_target, by_leaves):
        assert again.adapter == adapted.adapter
        np.testing.assert_array_equal(again(X), adapted(X))


def test_leaves_can_be_joined_and_given_instead_of_a_target():
    model = model_of("attention")
    weights = weights_of(model)
    leaves = tnadapt_jax.find_sites(weights, target=["query", "key"], layout="in out out")
    leaves += tnadapt_jax.find_sites(weights, target=["out"], layout="in in out")
    found = attach(model, "lora", leaves=leaves, rank=2)
    asked = attach(model, "lora", layout={"query": "in out out", "key": "in out out", "out": "in in out"}, rank=2)
    assert {*found.adapter.sites} == {*asked.adapter.sites}


def test_starting_values_of_an_adapter_without_params_are_those_of_its_seed():
    model = model_of()
    leaves = tnadapt_jax.find_sites(weights_of(model), layout="nnx", **UP_DOWN)
    adapter = families.pissa().bind(leaves.sites, rank=2, seed=3)
    adapted = attach(model, adapter, leaves=leaves, dtype=jnp.bfloat16)
    wanted = attach(model, families.pissa(), rank=2, seed=3, dtype=jnp.bfloat16, **UP_DOWN)
    for one, other in zip(*(jax.tree.leaves(module.params()) for module in (adapted, wanted)), strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_array_equal(one, other)


LEAVES = tnadapt_jax.find_sites(
    {"up": {"kernel": jnp.ones((8, 16))}, "down": {"kernel": jnp.ones((16, 8))}}, layout="nnx", **UP_DOWN
)
ADAPTER = families.lora().bind(LEAVES.sites, rank=2)
PARAMS = tnadapt_jax.init(ADAPTER)
CONTRADICTIONS = {
    "leaves and a target": (
        ("lora", {"leaves": LEAVES, "target": ["up"], "rank": 2}),
        r"^attach: expected leaves without target, got both\.\nLeave out target, or what it contradicts",
    ),
    "leaves and tasks": (("lora", {"leaves": LEAVES, "tasks": ["a"]}), r"expected leaves without tasks, got both"),
    "an adapter and a seed": ((ADAPTER, {"leaves": LEAVES, "seed": 0}), r"expected an adapter without seed, got both"),
    "params and a dtype": (
        (ADAPTER, {"leaves": LEAVES, "params": PARAMS, "dtype": jnp.float32}),
        r"expected params without dtype, got both",
    ),
    "params of a spec": (
        ("lora", {"leaves": LEAVES, "params": PARAMS}),
        r"^attach: expected params with their adapter, got params with 'lora'\.\nBind the spec, or load",
    ),
    "no target": (("lora", {"rank": 2}), r"expected a target beside one layout for all, got none"),
    "leaves of another type": (("lora", {"leaves": ["up"], "rank": 2}), r"^attach: expected Leaves, got \['up'\]"),
    "params that do not fit": (
        (ADAPTER, {"leaves": LEAVES, "params": {"trainable": {}, "frozen": {}}}),
        r"^params\['trainable'\]: expected the array .*, got none",
    ),
    "leaves that lack a site": (
        (ADAPTER, {"target": ["up"]}),
        r"^down: expected a leaf for this site, got none",
    ),
}


@pytest.mark.parametrize(("given", "words"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_arguments_that_contradict_each_other_are_refused(given, words):
    spec, options = given
    with pytest.raises(SiteError, match=words):
        attach(Mlp(nnx.Rngs(0)), spec, **options)
