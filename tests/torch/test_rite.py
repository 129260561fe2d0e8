"""Rite: its formulas, that it does not see how a product is split, and how it behaves as an optimizer of torch."""

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.descent import Task, apart, begin, expect_first_steps, moved, times, walk
from tests.gauge import turned
from tests.table import FAMILIES
from tests.torch import hosts
from tests.torch.steps import COPIES, TorchRule, expect_a_copy_to_train, give, state_of, values_of
from tnadapt import AdapterSpec, PlanError, Site, SiteError, families, grid, init, raw, trainable
from tnadapt.binding import pairs
from tnadapt_torch.optim import Rite

LORA = families.lora().bind(grid(layers=2, kinds={"q": (6, 5)}), rank=3)


class Formulas:
    """LoRA-RITE for matrices A (r, in) and B (out, r), written from its equations, in numpy."""

    def __init__(self, adapter, *, lr, clip, skip):
        self.pairs = [(pair.left.name, pair.right.name) for pair in pairs(adapter)]
        self.lr, self.clip, self.skip, self.kept, self.skipped, self.clipped = lr, clip, skip, {}, 0, 0

    def __call__(self, values, grads):
        flat = {}
        for pair in self.pairs:
            tall = {name: values[name].T if name.endswith("A") else values[name] for name in pair}
            of = {name: grads[name].T if name.endswith("A") else grads[name] for name in pair}
            for one, other in (pair, pair[::-1]):
                basis, rest = np.linalg.qr(tall[other])
                inverse = np.linalg.pinv(rest)
                plain = of[one] @ inverse
                if np.sqrt(np.mean(plain**2)) > self.skip:
                    plain, self.skipped = 0 * plain, self.skipped + 1
                flat[one] = [tall[one], plain, basis, inverse]
        norm = np.sqrt(sum(np.sum(plain**2) for _, plain, _, _ in flat.values()))
        self.clipped += norm > self.clip
        return {name: self.step(name, parts, norm) for name, parts in flat.items()}

    def step(self, name, parts, norm):
        tall, plain, basis, inverse = parts
        plain = plain * self.clip / max(norm, self.clip)
        rank = plain.shape[1]
        old = self.kept.get(name, (0, np.zeros_like(plain), np.zeros((rank, rank)), np.zeros_like(basis)))
        t, moment, second, before = old
        t += 1
        b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (0.9, 0.999))
        turn = basis.T @ before
        second = b2 * turn @ second @ turn.T + (1 - b2) * plain.T @ plain / len(plain)
        sizes, axes = np.linalg.eigh(second)
        whitened = plain @ axes @ np.diag(1 / (np.sqrt(np.maximum(sizes, 0)) + 1e-6)) @ axes.T
        moment = b1 * moment @ turn.T + (1 - b1) * whitened
        self.kept[name] = t, moment, second, basis
        new = tall - self.lr * moment @ inverse.T
        return new.T if name.endswith("A") else new


@pytest.mark.parametrize(("clip", "skip"), [(1e9, 1e9), (0.01, 1e9), (1e9, 0.24)])
def test_steps_on_lora_are_those_of_the_formulas(clip, skip):
    params, task = moved(LORA), Task(LORA)
    formulas = Formulas(LORA, lr=1e-2, clip=clip, skip=skip)
    wanted, losses = walk(task, params, formulas, 30)
    rule = TorchRule(LORA, params, lambda state: Rite(state, lr=1e-2, clip=clip, skip=skip))
    found, _ = walk(task, params, rule, 30)
    assert apart(found, wanted) < 1e-10
    assert losses[-1] < losses[0]
    assert (formulas.clipped > 0) == (clip < 0.1)
    assert (0 < formulas.skipped < 120) == (skip < 1)


@pytest.mark.parametrize("kind", ["scaled", "turned"])
def test_the_path_does_not_depend_on_the_split_and_that_of_adam_does(kind):
    params, task = moved(LORA), Task(LORA)
    other = turned(LORA, params)
    if kind == "scaled":
        other = {name: value * (10 if name.endswith("A") else 0.1) for name, value in params.items()}

    def distance(make):
        one, two = (walk(task, begun, TorchRule(LORA, begun, make), 30)[0] for begun in (params, other))
        return apart(one, two)

    assert distance(lambda state: Rite(state, lr=1e-2)) < 1e-10
    assert distance(lambda state: torch.optim.Adam(state.parameters(), lr=1e-2)) > 0.1


IN_PAIRS = ["lora", "pissa", "abba", "dota", "mtlora_tasks", "loha", "gralora hybrid", "monarch wide", "btt", "hira"]


@pytest.mark.parametrize("name", IN_PAIRS)
def test_the_path_of_every_family_in_pairs_does_not_depend_on_the_split(name):
    adapter = FAMILIES[name].bind(layers=2, kinds={"q": (4, 6), "v": (4, 6), "up": (6, 4)})
    params, task = moved(adapter), Task(adapter)
    one, two = (
        walk(task, begun, TorchRule(adapter, begun, lambda state: Rite(state, lr=1e-2)), 10)[0]
        for begun in (params, turned(adapter, params))
    )
    assert apart(one, two) < 1e-10


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_descends_or_is_refused(name):
    adapter = FAMILIES[name].bind(layers=2, kinds={"q": (4, 6), "v": (4, 6), "up": (6, 4)})
    if name not in {*IN_PAIRS, "lora rank 1", "lora stabilized", "gralora", "losa", "monarch"}:
        with pytest.raises(PlanError, match=r"in pairs with one bond each, got .*\nUse Preconditioned"):
            Rite(state_of(adapter, moved(adapter)))
        return
    task = Task(adapter)
    for params in (moved(adapter), begin(adapter)):
        rule = TorchRule(adapter, params, lambda state: Rite(state, lr=1e-3))
        path, losses = walk(task, params, rule, 3)
        assert np.isfinite(path).all()
        assert losses[-1] < losses[0]


@st.composite
def paired(draw):
    """One or two random pairs, multiplied entrywise or added. One factor of a pair carries a mode, or both do."""
    over = draw(st.sampled_from(["", "layer", "layer kind"]))
    factors, number = {}, draw(st.integers(1, 2))
    for n in range(number):
        sides = ([f"r{n}"], [f"r{n}"])
        for mode in ("o1", "o2", "in", *over.split()):
            for side in draw(st.sampled_from([(0,), (1,), (0, 1)])):
                sides[side].append(mode)
        factors |= {f"F{n}{m}": trainable(" ".join(draw(st.permutations(side)))) for m, side in enumerate(sides)}
    terms = ["F00 F01", "- F10 F11"] if number > 1 and draw(st.booleans()) else []
    spec = AdapterSpec(
        name="own", weight="(o1 o2) in", over=over, factors=factors, terms=terms, scale=raw(0.5), start="free"
    )
    ranks = {f"r{n}": draw(st.integers(1, 3)) for n in range(number)}
    return spec.bind(grid(layers=2, kinds={"q": (6, 4), "v": (6, 4)}), rank=ranks, overparametrized=True)


@given(paired())
def test_random_pairs_descend_whatever_the_split(adapter):
    sides = [side for pair in pairs(adapter) for side in (pair.left, pair.right)]
    assume(all(side.unfolding.shape[1] >= side.unfolding.shape[2] for side in sides))
    task, params = Task(adapter), moved(adapter)
    starts = (params, turned(adapter, params))
    one, two = (walk(task, start, TorchRule(adapter, start, lambda s: Rite(s, lr=1e-4)), 3) for start in starts)
    assert one[1][-1] < one[1][0]
    assert apart(one[0], two[0]) < 1e-8  # a random factor may be singular to a few digits


def stack(over, a, b):
    return AdapterSpec(
        name="own",
        weight="out in",
        over=over,
        factors={"A": trainable(a), "B": trainable(b)},
        scale=raw(1),
        start="free",
    )


def test_a_stack_takes_the_steps_of_its_rows():
    sites = grid(layers=2, kinds={"q": (6, 5)})
    apiece = stack("", "in r", "out r").bind(sites, rank=3)
    together = stack("layer", "in layer r", "layer out r").bind(sites, rank=3)
    params = moved(apiece)
    joined = {"A": np.stack([params["0.q.A"], params["1.q.A"]], 1), "B": np.stack([params["0.q.B"], params["1.q.B"]])}
    paths = []
    for adapter, begun in ((apiece, params), (together, joined)):
        rule = TorchRule(adapter, begun, lambda state: Rite(state, lr=1e-2, clip=0.01, skip=0.1))
        paths.append(walk(Task(adapter), begun, rule, 20)[0])
    assert apart(*paths) < 1e-12


def test_from_a_zero_factor_the_other_stands_still_for_one_step():
    params, task = init(LORA), Task(LORA)
    rule = TorchRule(LORA, params, lambda state: Rite(state, lr=1e-2))
    first = rule({name: params[name] for name in values_of(rule.state)}, task.gradients(params))
    assert all(np.array_equal(first[name], params[name]) == name.endswith("A") for name in first)
    second = rule(first, task.gradients(first))
    assert all(np.isfinite(value).all() and np.abs(value - first[name]).max() > 0 for name, value in second.items())


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_first_steps_are_as_long_whatever_the_loss_and_the_size_of_the_factors(size):
    params, task = init(LORA), Task(LORA)
    params = {name: value * (size if name.endswith("A") else 1) for name, value in params.items()}
    rule = TorchRule(LORA, params, lambda state: Rite(state, lr=1e-3, eps=1e-12, skip=0))
    expect_first_steps(LORA, params, lambda values: rule(values, times(1e2, task.gradients(values))), lr=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_equals_an_uninterrupted_one(dtype):
    params, task = moved(LORA), Task(LORA)
    rule = TorchRule(LORA, params, lambda state: Rite(state, lr=1e-2), dtype)
    values = values_of(rule.state)
    for _ in range(3):
        values = rule(values, task.gradients(values))
    file = io.BytesIO()
    torch.save(rule.optimizer.state_dict(), file)
    file.seek(0)
    other = TorchRule(LORA, values, lambda state: Rite(state, lr=5.0), dtype)
    other.optimizer.load_state_dict(torch.load(file))
    moments = [kept["moment"].dtype for kept in other.optimizer.state.values()]
    assert set(moments) == {torch.float32}
    for _ in range(3):
        grads = task.gradients(values)
        values, resumed = rule(values, grads), other(values, grads)
        assert all(np.array_equal(value, resumed[name]) for name, value in values.items())


def test_the_arithmetic_of_half_precision_factors_is_in_float32():
    def rounded(values):
        return {name: torch.tensor(value).bfloat16().double().numpy() for name, value in values.items()}

    params = rounded(moved(LORA))
    grads = rounded(Task(LORA).gradients(params))
    half, single = (
        TorchRule(LORA, params, lambda state: Rite(state, lr=1e-2), dtype) for dtype in (torch.bfloat16, torch.float32)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = half(values_of(half.state), grads)
    for name, value in rounded(single(values_of(single.state), grads)).items():
        assert np.array_equal(value, found[name])


def test_weight_decay_shrinks_the_factors():
    params = moved(LORA)
    grads = Task(LORA).gradients(params)
    plain, shrunk = (
        TorchRule(LORA, params, lambda state, decay=decay: Rite(state, lr=0.1, weight_decay=decay))(
            {name: params[name] for name in grads}, grads
        )
        for decay in (0.0, 0.5)
    )
    for name, value in plain.items():
        np.testing.assert_allclose(shrunk[name], value - 0.1 * 0.5 * params[name], rtol=1e-12, atol=1e-14)


def on_a_model(**options):
    torch.manual_seed(0)
    model = hosts.toy().double()
    state = hosts.adapt(model, "lora", modules_to_save=["score"])
    state.double()
    return model, state, Rite(state, **options)


def backward(model, words):
    loss = model(words).square().mean()
    loss.backward()
    return loss


def test_modules_to_save_take_steps_of_adamw():
    words = torch.arange(10).reshape(2, 5)
    model, state, optimizer = on_a_model(lr=1e-2, weight_decay=0.1)
    copied = copy.deepcopy(model.score)
    plain = torch.optim.AdamW(copied.parameters(), lr=1e-2, eps=1e-6, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        backward(model, words)
        for own, value in zip(copied.parameters(), model.score.parameters(), strict=True):
            own.grad = value.grad.clone()
        plain.step()
        optimizer.step()
    for own, value in zip(copied.parameters(), model.score.parameters(), strict=True):
        torch.testing.assert_close(own, value, rtol=1e-12, atol=1e-14)
    assert all(value.grad is not None for value in state.parameters())


def test_a_scheduler_a_closure_and_accumulated_gradients():
    words = torch.arange(10).reshape(2, 5)
    model, _, optimizer = on_a_model(lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1e-2 / (1 + step))
    begun = copy.deepcopy(model.state_dict())

    def closure():
        optimizer.zero_grad()
        return backward(model, words)

    losses = [optimizer.step(closure).item()]
    scheduler.step()
    assert {group["lr"] for group in optimizer.param_groups} == {5e-3}
    losses.append(optimizer.step(closure).item())
    assert losses[1] < losses[0]

    other, _, accumulated = on_a_model(lr=1e-2)
    other.load_state_dict(begun)
    for row in words:
        (other(row[None]).square().mean() / 2).backward()
    accumulated.step()
    again, _, whole = on_a_model(lr=1e-2)
    again.load_state_dict(begun)
    backward(again, words)
    whole.step()
    for one, two in zip(other.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_a_pair_without_gradients_stands_still():
    params = moved(LORA)
    state = state_of(LORA, params)
    optimizer = Rite(state)
    grads = Task(LORA).gradients(params)
    give(state, {name: value for name, value in grads.items() if name.startswith("0")})
    optimizer.step()
    optimizer.zero_grad()
    give(state, grads)
    optimizer.step()
    after = values_of(state)
    assert all(np.abs(after[name] - params[name]).max() > 0 for name in after)
    assert [optimizer.state[state.params()[name]]["step"] for name in ("0.q.A", "1.q.A")] == [2, 1]


def refused(act, state, message, error=SiteError):
    before = values_of(state)
    with pytest.raises(error, match=message):
        act()
    assert all(np.array_equal(value, before[name]) for name, value in values_of(state).items())


def test_what_it_cannot_do_is_refused_and_nothing_changes():
    params = moved(LORA)
    grads = Task(LORA).gradients(params)
    state = state_of(LORA, params)
    optimizer = Rite(state)
    refused(optimizer.step, state, "Rite: expected gradients, got none")
    give(state, {"0.q.A": grads["0.q.A"]})
    refused(optimizer.step, state, "gradients of both factors on the bond 'r', got none of '0.q.B'")
    give(state, grads | {"1.q.A": np.full_like(grads["1.q.A"], np.nan)})
    refused(optimizer.step, state, "expected finite factors and gradients, got NaN or infinity")
    assert not optimizer.state
    give(state, grads)
    state.merged = object()
    refused(optimizer.step, state, "expected an adapter that is not merged")
    state.merged = None
    sgd = torch.optim.SGD(state.parameters(), lr=1, momentum=0.9)
    sgd.step()
    refused(lambda: optimizer.load_state_dict(sgd.state_dict()), state, "Rite: expected a state with step, moment")
    other = state_of(LORA, params)
    optimizer.adapted = other
    give(other, grads)
    refused(optimizer.step, other, "expected the factors it was made for, got others")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "a number of at least 0 as lr, got -1.0"),
        ({"lr": float("nan")}, "as lr, got nan"),
        ({"betas": 0.9}, "expected two numbers as betas, got 0.9"),
        ({"betas": (0.9, 1.0)}, "a number of at least 0 and below 1 as beta, got 1.0"),
        ({"eps": "1"}, "as eps, got '1'"),
        ({"clip": True}, "as clip, got True"),
        ({"skip": -1}, "as skip, got -1"),
        ({"weight_decay": None}, "as weight_decay, got None"),
        ({"alpha": 1}, "Rite: expected a known argument, got 'alpha'"),
    ],
)
def test_arguments_that_are_wrong(options, message):
    with pytest.raises(SiteError, match=message):
        Rite(state_of(LORA, moved(LORA)), **options)


def test_what_it_needs_to_know():
    with pytest.raises(SiteError, match="Rite: expected the state of an adapter"):
        Rite([torch.zeros(2, requires_grad=True)])
    with pytest.raises(SiteError, match=r"Rite: expected at most 1 positional argument, got 2"):
        Rite(state_of(LORA, moved(LORA)), 1e-3)
    adapter = families.lotr().bind(Site("q", (6, 5)), rank=2)
    with pytest.raises(PlanError, match=r"'G' \(it has the bonds p and q\)"):
        Rite(state_of(adapter, moved(adapter)))
    meta = state_of(LORA, moved(LORA)).to("meta")
    with pytest.raises(SiteError, match=r"the whole factor '0.q.A' of shape \(3, 5\), got one on the meta"):
        Rite(meta)


def test_parameters_that_are_added_take_steps_of_adamw():
    params = moved(LORA)
    state = state_of(LORA, params)
    optimizer = Rite(state, lr=1e-2)
    more, same = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    optimizer.add_param_group({"params": [more], "lr": 0.1})
    plain = torch.optim.AdamW([same], lr=0.1, eps=1e-6, weight_decay=0)
    grads = Task(LORA).gradients(params)
    for step in range(3):
        give(state, grads)
        more.grad = same.grad = torch.tensor([1.0, -2.0, 0.5 * step], dtype=torch.float64)
        optimizer.step()
        plain.step()
    torch.testing.assert_close(more, same, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_with_its_model_trains_as_the_original(copied):
    model, state, _ = on_a_model()
    expect_a_copy_to_train(copied, model, Rite(state, lr=1e-2))


def test_a_state_of_other_ranks_is_refused():
    params = moved(LORA)
    state = state_of(LORA, params)
    optimizer = Rite(state)
    give(state, Task(LORA).gradients(params))
    optimizer.step()
    sites = LORA.sites
    other = families.lora().bind(sites, rank=1)
    fresh = Rite(state_of(other, moved(other)))
    with pytest.raises(SiteError, match=r"Rite: expected a moment and a basis of shapes .* for '.*', got"):
        fresh.load_state_dict(optimizer.state_dict())
    assert not fresh.state


def test_moments_follow_a_cast_of_the_factors():
    model, state, _ = on_a_model()
    optimizer = Rite(state, lr=1e-2)
    words = torch.arange(10).reshape(2, 5)
    for dtype in (torch.float64, torch.float32, torch.float64):
        model.to(dtype)
        optimizer.zero_grad()
        backward(model, words)
        optimizer.step()
    assert all(torch.isfinite(value).all() for value in state.parameters())


@pytest.mark.parametrize(("options", "stands"), [({}, True), ({"skip": 0}, False)])
def test_large_gradients_are_skipped_unless_that_is_turned_off(options, stands):
    params = moved(LORA)
    state = state_of(LORA, params)
    optimizer = Rite(state, lr=1e-2, **options)
    give(state, {name: np.full(value.shape, 1e3) for name, value in params.items()})
    before = {name: value.copy() for name, value in values_of(state).items()}
    optimizer.step()
    assert all(np.array_equal(value, before[name]) for name, value in values_of(state).items()) == stands


@pytest.mark.parametrize("size", [1e3, 1e-3])
def test_a_warning_says_that_every_gradient_was_skipped(size):
    params = moved(LORA)
    state = state_of(LORA, params)
    optimizer = Rite(state, lr=1e-4)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(12):
            give(state, {name: np.full(value.shape, size) for name, value in params.items()})
            optimizer.step()
    told = [str(one.message) for one in found if "nothing was trained" in str(one.message)]
    assert len(told) == (size > 1)


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64])
def test_a_rate_of_numpy_is_the_python_number(number):
    optimizer = Rite(hosts.adapt(hosts.toy(), "lora"), lr=number(1))
    assert {type(group["lr"]) for group in optimizer.param_groups} == {float}
