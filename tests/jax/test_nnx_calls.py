"""Calls of an adapted model of nnx: methods, keywords, modes, tasks, transformations, and all that a call changes."""

import pytest

pytest.importorskip("flax")

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors, nnx

import tnadapt_jax
from tests.jax.hosts import HOSTS, TRANSFORMED, UP_DOWN, Attention, D, Host, Mlp, Twice
from tests.jax.test_nnx_hosts import adapted_of, merged_call, same
from tests.thorough import IS_THOROUGH
from tnadapt import SiteError, families
from tnadapt_jax.nnx import Adapted, AdapterParam, attach


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # layers of flax combine float64 with float32
        yield


def merged_model(adapted):
    """Return a copy of the model with merged weights."""
    graph, weights, rest = nnx.split(adapted.model, nnx.Param, ...)
    new = jax.tree.map(lambda leaf: leaf, weights)
    pure = nnx.to_pure_dict(weights)
    nnx.replace_by_pure_dict(new, tnadapt_jax.merge(adapted.adapter, adapted.params(), pure, adapted.leaves))
    return nnx.merge(graph, new, rest, copy=True)


X = HOSTS["mlp"].x


def test_keywords_and_other_methods_are_those_of_the_model():
    adapted = adapted_of(HOSTS["mlp"])
    merged = merged_model(adapted)
    same(adapted(X(), scale=0.5), merged(X(), scale=0.5))
    same(adapted(x=X()), merged(X()))
    same(adapted.call("encode", X()), merged.encode(X()))
    assert adapted.explain(X(), method="encode").uses["down.kernel"] == {}
    with pytest.raises(SiteError, match="call: expected a method of Mlp, got 'decode'"):
        adapted.call("decode", X())


def test_random_streams_that_are_given_at_the_call_are_counted_on():
    adapted = adapted_of(HOSTS["mlp"])

    class Dropping(nnx.Module):
        def __init__(self, mlp):
            self.mlp, self.drop = mlp, nnx.Dropout(0.5)

        def __call__(self, x, rngs):
            return self.drop(self.mlp(x), rngs=rngs)

    adapted.model = Dropping(adapted.model)
    adapted = attach(adapted.model, "lora", target=["up"], rank=2)
    streams, others = nnx.Rngs(dropout=3), nnx.Rngs(dropout=3)
    found = [adapted(X(), rngs=streams) for _ in range(2)]
    wanted = [adapted.model(X(), rngs=others) for _ in range(2)]
    same(found, wanted)
    assert int(streams.dropout.count[...]) == 2


def test_modes_are_set_on_the_adapted_model():
    adapted = adapted_of(HOSTS["statistics and dropout"])
    adapted.eval()
    same(adapted(X()), adapted(X()))
    before = nnx.to_pure_dict(nnx.state(adapted, nnx.BatchStat))
    adapted.train()
    assert float(jnp.abs(adapted(X()) - adapted(X())).max()) > 0
    assert float(jnp.abs(nnx.state(adapted, nnx.BatchStat)["model"]["norm"]["mean"][...]).max()) > 0
    assert float(jnp.abs(before["model"]["norm"]["mean"]).max()) == 0


def test_a_model_that_changes_nothing_can_be_closed_over_and_one_that_does_says_so_as_flax_does():
    adapted = adapted_of(HOSTS["statistics and dropout"])
    with pytest.raises(errors.TraceContextError, match="Cannot mutate"):
        jax.jit(adapted.__call__)(X())
    adapted.eval()
    same(jax.jit(adapted.__call__)(X()), adapted(X()))


def test_eager_calls_change_statistics_as_the_model_does():
    adapted = adapted_of(HOSTS["statistics and dropout"])
    model = merged_model(adapted)
    for seed in range(3):
        same(adapted(X(seed)), model(X(seed)))
    kept = nnx.Not(nnx.Param)
    same(nnx.to_pure_dict(nnx.state(adapted.model, kept)), nnx.to_pure_dict(nnx.state(model, kept)))
    assert int(adapted.model.drop.rngs.count[...]) == 3


def test_the_whole_module_can_be_split_and_merged_and_checkpointed():
    adapted = adapted_of(HOSTS["scan of checkpoints"])
    again = nnx.merge(*nnx.split(adapted), copy=True)
    wanted, state = merged_call(adapted)(adapted.params()["trainable"], X())
    same(again(X()), wanted)
    same(nnx.remat(lambda adapted, x: adapted(x))(adapted, X()), wanted)
    same(nnx.to_pure_dict(nnx.state(adapted.model, nnx.Not(nnx.Param))), state)


def test_it_can_be_scanned_and_mapped_over():
    adapted = adapted_of(HOSTS["statistics and dropout"])
    model = merged_model(adapted)
    xs = jnp.stack([X(seed) for seed in range(3)])

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def each(module, x):
        return module, module(x)

    adapted, found = each(adapted, xs)
    same(found, jnp.stack([model(x) for x in xs]))
    adapted.eval()
    model.eval()
    same(nnx.vmap(lambda module, x: module(x), in_axes=(None, 0))(adapted, xs), jnp.stack([model(x) for x in xs]))


def test_gradients_of_the_weights_themselves_are_those_of_merged_weights():
    adapted = adapted_of(HOSTS["mlp"])
    model = merged_model(adapted)
    loss = lambda module, x: jnp.sum(jnp.sin(module(x)))  # noqa: E731
    found = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.Param))(adapted, X())
    same(nnx.to_pure_dict(found)["model"], nnx.to_pure_dict(nnx.grad(loss)(model, X())))


def test_a_method_may_make_new_variables():
    class Host(nnx.Module):
        def __init__(self):
            self.mlp = Mlp(nnx.Rngs(0))

        def __call__(self, x):
            self.sow(nnx.Intermediate, "h", self.mlp.up(x))
            return self.mlp(x)

    adapted = attach(Host(), "lora", target=["up", "down"], rank=2)
    with pytest.warns(DeprecationWarning, match="sow"):
        adapted(X())
    same(adapted.model.h.get_value()[0], adapted.model.mlp.up(X()))
    captured = nnx.capture(attach(Host(), "lora", target=["up", "down"], rank=2), nnx.Intermediate)
    _, found = captured(X())
    same(jax.tree.leaves(found), [adapted.model.mlp.up(X())])


def test_decoding_with_a_cache_is_that_of_merged_weights():
    model = Attention(nnx.Rngs(0))
    adapted = attach(model, "lora", layout=HOSTS["attention"].find["layout"], rank=2, dtype=jnp.float64)
    for variable in adapted.trainable.values():
        variable[...] += 0.1
    model.attend.set_attributes(decode=True, deterministic=True)
    model.attend.init_cache((2, 5, D), jnp.float64)
    merged = merged_model(adapted)
    for at in range(3):
        x = X()[:, at : at + 1]
        same(adapted.model.attend.cache_index[...], at)
        same(adapted(x), merged(x))


def test_a_call_that_changes_other_attributes_is_refused():
    class Counting(Mlp):
        calls = 0

        def __call__(self, x):
            self.calls = self.calls + 1
            return super().__call__(x)

    adapted = attach(Counting(nnx.Rngs(0)), "lora", target=["up"], rank=2)
    with pytest.raises(SiteError, match=r"call: expected a call that changes variables alone, got .*attributes"):
        adapted(X())


def test_arrays_that_a_call_puts_into_its_arguments_are_there_afterwards():
    class Caching(Mlp):
        def __call__(self, x, cache, kept=()):
            cache["h"], cache["new"] = self.up(x), x
            kept += [x] if isinstance(kept, list) else ()
            return super().__call__(x)

    adapted, cache = attach(Caching(nnx.Rngs(0)), "lora", target=["up"], rank=2), {"h": X()}
    adapted(X(), cache)
    same(cache, {"h": adapted.model.up(X()), "new": X()})
    with pytest.raises(SiteError, match="call: expected a call that changes variables alone"):
        adapted(X(), cache, [])


def test_explain_needs_no_arrays():
    model = nnx.eval_shape(lambda: HOSTS["maxtext"].make(nnx.Rngs(0)))
    adapted = attach(model, "lotr", rank=2, **HOSTS["maxtext"].find)
    x = jax.ShapeDtypeStruct((2, 5, D), jnp.float64)
    assert str(adapted.explain(x)).splitlines()[0].split() == ["layers.key.kernel", "activations", "x1"]
    assert str(adapted.explain(x)) == str(adapted.explain(X()))
    assert attach(Mlp(nnx.Rngs(0)), "lora", target=["up"], rank=2).explain(x, scale=2).dense == ()


@pytest.mark.parametrize("kind", TRANSFORMED)
def test_a_transformation_of_nnx_inside_the_model_is_followed(kind):
    adapted = adapted_of(Host(kind, UP_DOWN))
    assert adapted.explain(X()).dense == ()
    same(adapted(X()), merged_model(adapted)(X()))


@pytest.mark.parametrize("name", ["vera", "pissa", "hira", "bora", "metatt"] if IS_THOROUGH else ["hira", "vera"])
def test_families_of_every_kind_are_those_of_merged_weights(name):
    adapted = adapted_of(HOSTS["scan of checkpoints"], getattr(families, name))
    wanted, _ = merged_call(adapted)(adapted.params()["trainable"], X())
    same(nnx.jit(lambda adapted, x: adapted(x))(adapted, X()), wanted)


def test_an_answer_that_is_no_array_is_refused():
    class Telling(Mlp):
        def name(self):
            return "telling"

    adapted = attach(Telling(nnx.Rngs(0)), "lora", target=["up"], rank=2)
    with pytest.raises(SiteError, match="a function whose answer consists of arrays"):
        adapted.call("name")


def test_each_task_has_sites_of_its_own():
    adapted = attach(Mlp(nnx.Rngs(0)), "lora", target=["up"], tasks=["chat", "code"], rank=2, dtype=jnp.float64)
    for number, variable in enumerate(adapted.trainable.values()):
        variable[...] += jax.random.normal(jax.random.key(number), variable.shape, jnp.float64)
    weights = nnx.to_pure_dict(nnx.state(adapted.model, nnx.Param))
    assert adapted.task == "chat"
    for task in ("chat", "code"):
        adapted.set_task(task)
        merged = tnadapt_jax.merge(adapted.adapter, adapted.params(), weights, adapted.leaves, task=task)
        same(nnx.jit(lambda module, x: module.call("encode", x))(adapted, X()), encoded(merged, X()))
    with pytest.raises(
        SiteError, match=r"task: expected a task of this adapter, got 'cook'.\nIts tasks are chat, code"
    ):
        adapted.set_task("cook")


def encoded(weights, x):
    return jnp.tanh(x @ weights["up"]["kernel"] + weights["up"]["bias"][None, None])


def test_a_kernel_that_two_modules_share_is_one_site_under_its_first_path():
    adapted = adapted_of(HOSTS["one kernel twice"])
    assert [site.path for site in adapted.adapter.sites] == ["first"]
    assert adapted.explain(X()).uses == {"first.kernel": {"activations": 2}}
    assert "kernel" not in nnx.to_pure_dict(nnx.state(adapted.model, nnx.Param))["second"]
    with pytest.raises(SiteError, match=r"got 'second'(.|\n)*\nShared by modules: second.kernel is first.kernel\.$"):
        attach(Twice(nnx.Rngs(0)), "lora", target=["second"], rank=2)


def test_a_small_update_of_half_precision_weights_arrives():
    model = nnx.Linear(256, 256, use_bias=False, param_dtype=jnp.bfloat16, dtype=jnp.float32, rngs=nnx.Rngs(0))
    adapted = attach(nnx.Sequential(model), "lora", target=r"layers\.0", rank=4, dtype=jnp.float32)
    for number, variable in enumerate(adapted.trainable.values()):
        variable[...] = jax.random.normal(jax.random.key(number), variable.shape, jnp.float32)
    size = lambda array: float(jnp.linalg.norm(array.astype(jnp.float64)))  # noqa: E731
    update = tnadapt_jax.delta(adapted.adapter, adapted.params(), "layers.0")
    factor = next(variable for name, variable in adapted.trainable.items() if name.endswith("B"))
    factor[...] = factor[...] * (8e-4 * size(model.kernel[...]) / size(update))
    update = tnadapt_jax.delta(adapted.adapter, adapted.params(), "layers.0")
    x = jax.random.normal(jax.random.key(9), (64, 256), jnp.float32)
    wanted = x.astype(jnp.float64) @ update.astype(jnp.float64).T
    exact = x.astype(jnp.float64) @ model.kernel[...].astype(jnp.float64)
    found = adapted(x).astype(jnp.float64) - exact
    assert size(found - wanted) < 1e-3 * size(wanted)


def test_a_call_traces_once_and_bakes_no_weight_into_the_program():
    adapted, traces = adapted_of(HOSTS["gemma"]), []

    @nnx.jit
    def call(adapted, x):
        traces.append(x.shape)
        return adapted(x)

    for seed in range(20):
        call(adapted, X(seed))
    assert len(traces) == 1
    assert len(call.lower(adapted, X()).as_text()) < 100_000


def test_frozen_factors_get_no_gradient_and_the_filter_finds_the_others():
    adapted = adapted_of(HOSTS["mlp"], families.vera)
    found = nnx.grad(lambda module, x: module(x).sum(), argnums=nnx.DiffState(0, nnx.LoRAParam))(adapted, X())
    assert set(nnx.to_pure_dict(found)["trainable"]) == set(adapted.params()["trainable"])
    assert all(np.any(np.asarray(one) != 0) for one in jax.tree.leaves(found))
    assert len(jax.tree.leaves(nnx.state(adapted, AdapterParam))) == len(adapted.trainable)


def test_statistics_of_a_stack_come_back_in_their_layers():
    adapted = adapted_of(HOSTS["scan of checkpoints"])
    adapted(X())
    means = adapted.model.layers.norm.mean[...]
    assert means.shape == (3, D)
    assert all(float(jnp.abs(mean).max()) > 0 for mean in means)


def test_a_second_adapter_adds_to_the_first():
    first = adapted_of(HOSTS["mlp"])
    second = attach(first, "lora", target=["model.up", "model.down"], layout="nnx", rank=1, dtype=jnp.float64)
    for variable in second.trainable.values():
        variable[...] += 0.1
    merged = merged_model(second)
    assert isinstance(merged, Adapted)
    same(second(X()), merged_model(merged)(X()))


def test_variables_whose_paths_read_alike_are_kept_apart():
    """A name may contain a dot: a variable of another kind is none of the weights, and two weights are refused."""

    class Model(nnx.Module):
        def __init__(self, kind):
            self.held = nnx.Dict({"a": nnx.Dict({"w": nnx.Param(jnp.ones((4, 4)))}), "a.w": kind(jnp.ones((4, 4)))})

        def __call__(self, x):
            return x @ self.held["a"]["w"][...] + 3 * (x @ self.held["a.w"][...])

    adapted = attach(Model(nnx.Variable), families.lora(), layout={"a.w": "in out"}, rank=2)
    adapted.model.held["a.w"][...] *= 2
    np.testing.assert_allclose(adapted(jnp.ones((2, 4))), 28.0)
    with pytest.raises(SiteError, match=r"^held\.a\.w: expected one leaf of this name, got held\.a\.w, held\.a\.w"):
        attach(Model(nnx.Param), families.lora(), layout={"a.w": "in out"}, rank=2)
