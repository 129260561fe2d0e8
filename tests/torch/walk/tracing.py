"""Events in which torch traces or transforms the model: compile, FakeTensor, make_fx, functional_call, vmap."""

import random
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from tests.torch.walk import oracle
from tests.torch.walk.calls import train
from tests.torch.walk.kinds import KINDS
from tests.torch.walk.walk import Walk, is_ours

SHAPE = (2, 3)  # of most inputs of compiled code, since code for any shape takes long to make


# ---- compile


def compile_whole(walk: Walk, rng: random.Random) -> str | None:
    """Compile the model, call it, and keep what was compiled for later calls."""
    if not walk.kind.is_small and rng.random() < 0.9:  # a large one takes seconds each time that something changed
        return None
    walk.uncompile_blocks()
    backend = "aot_eager" if walk.kind is KINDS["mlp"] and rng.random() < 0.2 else "eager"  # aot takes seconds
    walk.compiled = [torch.compile(walk.model, backend=backend)]
    walk.has_compiled = walk.has_traced = True
    return f"{backend}, {call_compiled(walk, rng)}"


def call_compiled(walk: Walk, rng: random.Random) -> str | None:
    """Call whatever was compiled earlier, to evaluate or to train."""
    if not walk.compiled:
        return None
    way, shape = rng.choice(["train", "no_grad", "eager mode"]), SHAPE if rng.random() < 0.9 else None
    for model in walk.compiled:
        x = walk.input(rng, shape)
        if way == "train":
            train(walk, rng, model=model, x=x, update=False)
        else:
            with torch.set_grad_enabled(way != "no_grad"):
                walk.compare(model(x), x, "compiled output")
    return way


def compile_blocks(walk: Walk, rng: random.Random) -> str:
    """Compile blocks in place, as trainers do; from then on the model runs the compiled blocks."""
    walk.compile_blocks(walk.kind.blocks if walk.kind.is_small else rng.sample(walk.kind.blocks, 1), SHAPE)
    walk.check(rng)
    return train(walk, rng, update=False)


# ---- traces


def fake(walk: Walk, rng: random.Random) -> str | None:
    """Run the model on tensors without numbers, then on real ones."""
    if not walk.kind.is_small and rng.random() < 0.5:
        return None
    walk.has_traced = True
    walk.uncompile_blocks()
    x = walk.input(rng)
    wanted = walk.wanted(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = walk.model(mode.from_tensor(x))
    assert isinstance(y, FakeTensor)
    assert y.shape == wanted.shape
    train(walk, rng, update=False)
    return f"{tuple(x.shape)}"


def trace(walk: Walk, rng: random.Random) -> str | None:
    """Trace the model by make_fx; the graph gives the same numbers, also for another input of the same shape."""
    if not walk.kind.is_small and rng.random() < 0.8:
        return None
    walk.has_traced = True
    walk.uncompile_blocks()
    way = rng.choice(["real", "fake", "symbolic"])
    with rng.choice([torch.no_grad, torch.enable_grad])():
        graph = make_fx(walk.model, tracing_mode=way, _allow_non_fake_inputs=True)(walk.input(rng, SHAPE))
        x = walk.input(rng, SHAPE)
        walk.compare(graph(x), x, "output of the graph")
    return way


# ---- function transforms


def others(walk: Walk, rng: random.Random) -> tuple[dict[str, Tensor], Any]:
    """Draw other values of all factors: by parameter name for torch, and by adapter and factor for the oracle."""
    names = {id(value): name for name, value in [*walk.model.named_parameters(), *walk.model.named_buffers()]}
    given, params = {}, {}
    for who, state in walk.states().items():
        params[who] = {}
        for key, value in state.params().items():
            factor = rng.choice([0.5, -1.0, 1.5]) if isinstance(value, torch.nn.Parameter) else 1.0
            given[names[id(value)]] = (value.detach() * factor).clone()
            params[who][key] = given[names[id(value)]].double().numpy()
    return given, params


def functional(walk: Walk, rng: random.Random) -> str | None:
    """Call the model with other factors, and differentiate by them."""
    walk.uncompile_blocks()
    if not walk.book.entries or walk.book.dtype == torch.bfloat16:
        return None
    given, params = others(walk, rng)
    x = walk.input(rng)
    y = functional_call(walk.model, given, (x,))
    oracle.assert_close(y, oracle.output(walk.book, walk.states(), x, params), walk.tolerance(), "functional_call")
    held = {name: value.detach() for name, value in walk.model.named_parameters() if is_ours(name)}
    pull = torch.randn_like(y.detach())
    found = grad(lambda values: (functional_call(walk.model, values, (x,)) * pull).sum())(held)
    wanted = oracle.differentiate(walk.book, walk.states(), x, oracle.times(pull))
    names = {id(value): name for name, value in walk.model.named_parameters()}
    for (who, key), gradient in wanted.factors.items():
        value = walk.states()[who].params()[key]
        scale = max(one.abs().max().item() for one in wanted.factors.values())
        oracle.assert_close(
            found[names[id(value)]] / scale, gradient / scale, 1e-3, f"functional gradient of {who} {key}"
        )
    return ", ".join(walk.book.entries)


def mapped(walk: Walk, rng: random.Random) -> str:
    """Map the model over a batch of inputs, and over several sets of factors."""
    walk.uncompile_blocks()
    xs = torch.stack([walk.input(rng, SHAPE) for _ in range(3)])
    for x, y in zip(xs, vmap(walk.model)(xs), strict=True):
        walk.compare(y, x, "output under vmap")
    if walk.book.entries:
        drawn = [others(walk, rng) for _ in range(2)]
        stacked = {name: torch.stack([given[name] for given, _ in drawn]) for name in drawn[0][0]}
        ys = vmap(lambda given: functional_call(walk.model, given, (xs[0],)))(stacked)
        for y, (_, params) in zip(ys, drawn, strict=True):
            wanted = oracle.output(walk.book, walk.states(), xs[0], params)
            oracle.assert_close(y, wanted, walk.tolerance(), "output of an ensemble under vmap")
    return f"{tuple(xs.shape)}"


def forward_mode(walk: Walk, rng: random.Random) -> str | None:
    """Differentiate in the direction of an input."""
    if not walk.kind.has_second_derivative:
        return None
    walk.uncompile_blocks()
    x, direction = walk.input(rng, SHAPE), walk.input(rng, SHAPE)
    y, found = jvp(walk.model, (x,), (direction,))
    walk.compare(y, x, "output in forward mode")
    plain = oracle.Plain(walk.book, oracle.updates(walk.book, walk.states()))
    _, wanted = jvp(plain.run, (x.double(),), (direction.double(),))
    oracle.assert_close(found.detach(), wanted, 30 * walk.tolerance(), "derivative in forward mode")
    return f"{tuple(x.shape)}"
