"""Preconditioned: its formulas, that it does not see how an update is split, and how it wraps optimizers of torch."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.descent import Task, apart, begin, moved, rate_of, walk
from tests.gauge import turned
from tests.table import FAMILIES
from tests.thorough import IS_THOROUGH
from tests.torch import hosts
from tests.torch.steps import COPIES, TorchRule, expect_a_copy_to_train, give, state_of, values_of
from tnadapt import AdapterSpec, PlanError, Site, SiteError, families, grid, raw, trainable
from tnadapt.binding import environments
from tnadapt.testing import adapters
from tnadapt_torch.optim import Preconditioned, Rite

KINDS = {"q": (4, 6), "v": (4, 6), "up": (6, 4)}
LORA = families.lora().bind(grid(layers=2, kinds={"q": (6, 5)}), rank=3)
SGD, ADAM = torch.optim.SGD, torch.optim.Adam


def maker(kind=SGD, lr=0.1, damping=0.0):
    return lambda state: Preconditioned(state, kind(state.parameters(), lr=lr), damping=damping)


def seen(adapter, params, grads, damping=0.0):
    """The gradients that the wrapped optimizer gets: a step of SGD at rate 1 subtracts them."""
    rule = TorchRule(adapter, params, maker(lr=1.0, damping=damping))
    after = rule({name: params[name] for name in grads}, grads)
    return {name: params[name] - value for name, value in after.items()}


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_lora_has_the_formulas_of_scaled_descent(damping):
    params = moved(LORA)
    grads = Task(LORA).gradients(params)
    found = seen(LORA, params, grads, damping)
    one = damping * np.eye(3)
    for layer in (0, 1):
        a, b = (params[f"{layer}.q.{name}"] for name in "AB")
        of_a, of_b = (grads[f"{layer}.q.{name}"] for name in "AB")
        np.testing.assert_allclose(found[f"{layer}.q.A"], np.linalg.solve(b.T @ b + one, of_a), rtol=1e-10, atol=1e-12)
        wanted = np.linalg.solve(a @ a.T + one, of_b.T).T
        np.testing.assert_allclose(found[f"{layer}.q.B"], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_lotr_has_a_kronecker_product_for_its_core_and_a_sum_over_sites(damping):
    adapter = families.lotr().bind(grid(layers=3, kinds={"q": (6, 5)}), rank={"p": 2, "q": 3})
    params = moved(adapter)
    grads = Task(adapter).gradients(params)
    found = seen(adapter, params, grads, damping)
    a, g, b = (params[name] for name in "AGB")
    core = np.kron(a.T @ a, b.T @ b) + damping * np.eye(6)
    wanted = np.linalg.solve(core, grads["G"].reshape(3, 6).T).T.reshape(3, 2, 3)
    np.testing.assert_allclose(found["G"], wanted, rtol=1e-10, atol=1e-12)
    left = sum(each @ b.T @ b @ each.T for each in g) + damping * np.eye(2)
    np.testing.assert_allclose(found["A"], np.linalg.solve(left, grads["A"].T).T, rtol=1e-10, atol=1e-12)


def test_sites_that_a_term_does_not_tell_apart_are_counted():
    own = AdapterSpec(
        name="own",
        weight="out in",
        over="layer",
        factors={"A": trainable("in r"), "B": trainable("out r")},
        scale=raw(0.5),
        start="free",
    )
    adapter = own.bind(grid(layers=3, kinds={"q": (6, 5)}), rank=2)
    params = moved(adapter)
    grads = Task(adapter).gradients(params)
    wanted = np.linalg.solve(3 * params["B"].T @ params["B"] + 0.1 * np.eye(2), grads["A"].T).T
    np.testing.assert_allclose(seen(adapter, params, grads, 0.1)["A"], wanted, rtol=1e-10, atol=1e-12)


def test_cp_has_the_product_of_the_gram_matrices():
    adapter = families.cp(out_order=1, in_order=2).bind(Site("q", (5, 6)), rank=3)
    params = moved(adapter)
    grads = Task(adapter).gradients(params)
    found = seen(adapter, params, grads, 0.1)
    node = adapter.groups[0].network.nodes
    for name, grad in grads.items():
        gram = 0.1 * np.eye(3) + np.prod(
            [
                np.tensordot(value, value, [[n for n, mode in enumerate(node[other].modes) if mode != "r"]] * 2)
                for other, value in params.items()
                if other != name
            ],
            axis=0,
        )
        axis = node[name].modes.index("r")
        wanted = np.moveaxis(np.tensordot(np.linalg.inv(gram), grad, (1, axis)), 0, axis)
        np.testing.assert_allclose(found[name], wanted, rtol=1e-10, atol=1e-12)


# With a bond that is longer than what it joins, a Gram matrix is singular, and the split is seen.
REGULAR = ["lora", "lotr", "metatt", "lorta", "tt_lora", "cp", "fact_tk", "adaring", "loha", "loretta"]


@pytest.mark.parametrize("name", REGULAR if IS_THOROUGH else ["lotr", "tt_lora", "loha"])
def test_the_path_does_not_depend_on_the_split_and_that_of_adam_does(name):
    adapter = FAMILIES[name].bind(layers=2, kinds={"q": (6, 4), "v": (6, 4)})
    params, task, lr = moved(adapter), Task(adapter), rate_of(adapter)
    other = turned(adapter, params)
    assert apart(task.updates(params)[None], task.updates(other)[None]) < 1e-12

    def distance(make):
        one, two = (walk(task, begun, TorchRule(adapter, begun, make), 30)[0] for begun in (params, other))
        return apart(one, two)

    assert distance(maker(lr=lr)) < 1e-10
    assert distance(lambda state: ADAM(state.parameters(), lr=1e-2)) > 0.1


@pytest.mark.parametrize("name", FAMILIES if IS_THOROUGH else [*FAMILIES][::4])
def test_every_family_descends_or_is_refused(name):
    adapter = FAMILIES[name].bind(layers=2, kinds=KINDS)
    try:
        environments(adapter)
    except PlanError:
        with pytest.raises(PlanError, match="expected factors whose environment is one Gram matrix"):
            TorchRule(adapter, moved(adapter), maker())
        return
    task, params = Task(adapter), moved(adapter)
    path, losses = walk(task, params, TorchRule(adapter, params, maker(lr=rate_of(adapter) / 10, damping=1e-6)), 3)
    assert np.isfinite(path).all()
    assert losses[-1] < losses[0]
    params = begin(adapter)
    path, _ = walk(task, params, TorchRule(adapter, params, maker(ADAM, lr=1e-3)), 3)
    assert np.isfinite(path).all()


@given(st.data())
def test_random_specs_descend_or_are_refused(data):
    adapter = data.draw(adapters())
    try:
        environments(adapter)
    except PlanError:
        assume(False)
    task, params = Task(adapter), moved(adapter)
    rule = TorchRule(adapter, params, maker(lr=rate_of(adapter) / 100, damping=0.01))
    path, losses = walk(task, params, rule, 3)
    assert np.isfinite(path).all()
    assert losses[-1] <= losses[0] * (1 + 1e-12)


def test_without_damping_what_has_no_effect_stands_still():
    params = begin(LORA)
    grads = {name: np.ones(np.shape(value)) for name, value in params.items()}
    found = seen(LORA, params, grads)
    assert all(np.abs(found[f"{layer}.q.A"]).max() == 0 < np.abs(found[f"{layer}.q.B"]).max() for layer in (0, 1))


def test_without_damping_a_singular_matrix_has_its_pseudoinverse():
    adapter = families.mtlora().bind(Site("q", (6, 5)), rank={"p": 2, "q": 4})
    params = moved(adapter)
    grads = Task(adapter).gradients(params)
    joined = params["B"] @ params["C"]  # of rank 2, with 4 columns
    wanted = np.linalg.pinv(joined.T @ joined, rcond=1e-10, hermitian=True) @ grads["A"]
    np.testing.assert_allclose(seen(adapter, params, grads)["A"], wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_arithmetic_is_wide_whatever_the_dtype_and_the_autocast(dtype):
    params = {name: torch.tensor(value).bfloat16().double().numpy() for name, value in moved(LORA).items()}
    grads = {
        name: torch.tensor(value).bfloat16().double().numpy() for name, value in Task(LORA).gradients(params).items()
    }
    wanted = seen(LORA, params, grads, 1e-6)
    state = state_of(LORA, params, dtype)
    optimizer = Preconditioned(state, SGD(state.parameters(), lr=1.0))
    given = {}
    optimizer.inner.step = lambda: given.update({name: value.grad.clone() for name, value in state.params().items()})
    give(state, grads)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        optimizer.step()
    for name, value in given.items():
        assert value.dtype == dtype
        torch.testing.assert_close(value, torch.tensor(wanted[name]).to(dtype))


def on_a_model(family="lora", **options):
    model = hosts.toy(dtype=torch.float64)
    state = hosts.adapt(model, family, modules_to_save=["score"])
    state.double()
    inner = torch.optim.SGD(state.parameter_groups(lr=1e-2), **options)
    return model, state, Preconditioned(state, inner)


def backward(model, words, share=1.0):
    loss = model(words).square().mean() * share
    loss.backward()
    return loss


WORDS = torch.arange(10).reshape(2, 5)


def test_it_is_an_optimizer_with_the_groups_and_the_state_of_the_wrapped_one():
    model, state, optimizer = on_a_model(momentum=0.9)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is optimizer.inner.param_groups
    assert [group["name"] for group in optimizer.param_groups] == ["A", "B", "modules_to_save"]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def closure():
        optimizer.zero_grad()
        return backward(model, WORDS)

    losses = []
    for _ in range(3):
        losses.append(optimizer.step(closure).item())
        scheduler.step()
    assert losses[2] < losses[1] < losses[0]
    assert {group["lr"] for group in optimizer.inner.param_groups} == {0.25e-2}
    saved = copy.deepcopy(optimizer.state_dict())
    other = Preconditioned(state, torch.optim.SGD(state.parameter_groups(lr=1.0), momentum=0.9))
    other.load_state_dict(saved)
    assert other.param_groups is other.inner.param_groups
    assert other.state is other.inner.state
    assert {group["lr"] for group in other.inner.param_groups} == {0.25e-2}
    assert (
        len(other.state) == len(optimizer.state) == len(list(model.score.parameters())) + len(list(state.parameters()))
    )
    extra = torch.nn.Parameter(torch.zeros(2))
    other.add_param_group({"params": [extra], "name": "extra"})
    assert other.inner.param_groups[-1]["params"] == [extra]


def test_other_parameters_and_the_gradients_themselves_stay():
    model, state, optimizer = on_a_model("lotr")
    backward(model, WORDS)
    before = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    score = [value.detach().clone() for value in model.score.parameters()]
    optimizer.step()
    after = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    for old, value in zip(score, model.score.parameters(), strict=True):
        torch.testing.assert_close(value, old - 1e-2 * value.grad, rtol=1e-12, atol=1e-14)
    optimizer.zero_grad()
    assert all(value.grad is None for value in state.parameters())


def test_accumulated_gradients_are_preconditioned_once():
    both = []
    for parts in ([WORDS], list(WORDS.split(1))):
        model, state, optimizer = on_a_model()
        for part in parts:
            backward(model, part, 1 / len(parts))
        optimizer.step()
        both.append(values_of(state))
    for name, value in both[0].items():
        np.testing.assert_allclose(both[1][name], value, rtol=1e-10, atol=1e-12)


def test_a_step_that_fails_leaves_the_gradients():
    params = moved(LORA)
    state = state_of(LORA, params)
    optimizer = Preconditioned(state, SGD(state.parameters(), lr=1.0))
    grads = Task(LORA).gradients(params)

    def fail():
        raise RuntimeError("no")

    optimizer.inner.step = fail
    give(state, grads)
    with pytest.raises(RuntimeError, match="no"):
        optimizer.step()
    assert all(np.array_equal(value.grad.numpy(), grads[name]) for name, value in state.params().items())


def test_what_it_cannot_do_is_refused():
    state = state_of(LORA, moved(LORA))
    inner = SGD(state.parameters(), lr=1.0)
    optimizer = Preconditioned(state, inner)
    with pytest.raises(SiteError, match="Preconditioned: expected gradients of the factors, got none"):
        optimizer.step()
    give(state, {name: np.full(value.shape, np.inf) for name, value in values_of(state).items()})
    with pytest.raises(SiteError, match=r"expected finite factors and gradients, got NaN or infinity in '0\.q\.A'"):
        optimizer.step()
    state.merged = object()
    with pytest.raises(SiteError, match="expected an adapter that is not merged"):
        optimizer.step()
    state.merged = None
    with pytest.raises(SiteError, match="a number of at least 0 as damping, got -1"):
        Preconditioned(state, inner, damping=-1)
    with pytest.raises(SiteError, match="expected the state of an adapter"):
        Preconditioned(inner, state)
    for wrong in (0.1, SGD, torch.optim.LBFGS(state.parameters()), optimizer, Rite(state)):
        with pytest.raises(SiteError, match="expected an optimizer that steps without a closure"):
            Preconditioned(state, wrong)
    with pytest.raises(SiteError, match="expected an optimizer of the adapter's factors, got one of other parameters"):
        Preconditioned(state, SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0))
    with pytest.raises(SiteError, match="Preconditioned: expected at most 2 positional arguments, got 3"):
        Preconditioned(state, inner, 0.1)
    with pytest.raises(SiteError, match="Preconditioned: expected a known argument, got 'lr'"):
        Preconditioned(state, inner, lr=1.0)
    with pytest.raises(SiteError, match="got one on the meta device"):
        Preconditioned(state.to("meta"), SGD(state.parameters(), lr=1.0))
    adapter = families.householder().bind(Site("q", (4, 4)), rank=4)
    with pytest.raises(PlanError, match=r"'u' \(its entries follow from parameters by the map 'householder'"):
        TorchRule(adapter, begin(adapter), maker())


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_with_its_model_trains_as_the_original(copied):
    model, state, _ = on_a_model()
    inner = torch.optim.AdamW(state.parameters(), lr=1e-2)
    expect_a_copy_to_train(copied, model, Preconditioned(state, inner))
