"""Events that call the model: in every mode of torch and with every form of input, and events that train it."""

import random
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from tests.torch.walk import oracle
from tests.torch.walk.walk import TOLERANCE, Walk, is_ours

Model = Callable[[Tensor], Tensor]


def draw(walk: Walk, rng: random.Random, shape: tuple[int, ...] | None = None) -> Tensor:
    return walk.input(rng, shape)


# ---- training


def train(
    walk: Walk, rng: random.Random, *, model: Model | None = None, x: Tensor | None = None, update: bool = True
) -> str:
    """Do one step of training; every gradient is compared, and those that must not be there are missed."""
    x = walk.input(rng) if x is None else x
    x = x.detach().requires_grad_() if x.is_floating_point() and rng.random() < 0.5 else x
    walk.model.zero_grad(set_to_none=True)
    y = walk.model(x) if model is None else model(x)
    walk.compare(y, x, "output in training")
    pull = torch.randn(y.shape, generator=torch.Generator().manual_seed(rng.getrandbits(32)), dtype=torch.float64)
    wanted = oracle.differentiate(walk.book, walk.states(), x, oracle.times(pull))
    if y.requires_grad:
        oracle.times(pull)(y, x).backward()
    compare_gradients(walk, wanted, x)
    if update:
        descend(walk)
    walk.model.zero_grad(set_to_none=True)
    return f"{tuple(x.shape)}"


def compare_gradients(walk: Walk, wanted: oracle.Gradients, x: Tensor) -> None:
    tolerance = min(30 * walk.tolerance(), 0.2)
    tolerance = max(tolerance, 1e-4) if narrow(walk) else tolerance
    scale = max((oracle.largest(one) for one in [*wanted.factors.values(), *wanted.held.values()]), default=0.0)
    for name, state in walk.states().items():
        entry = walk.book.entries[name]
        own = {key: one for (adapter, key), one in wanted.factors.items() if adapter == name}
        # Eight bits of what all of them come from are rounded, and in the small ones it nearly cancels.
        terms = max(map(oracle.largest, own.values()), default=0.0) if walk.book.dtype == torch.bfloat16 else 0.0
        for key, value in state.params().items():
            if not isinstance(value, torch.nn.Parameter):
                continue
            if entry.is_active and key not in entry.frozen:
                found = torch.zeros_like(value) if value.grad is None else value.grad  # of other tasks' factors
                close_at(found, own[key], tolerance, scale, f"gradient of {name} {key}", terms=terms)
            else:
                is_zero = value.grad is None or not value.grad.any()
                assert is_zero, f"{name} {key}: a gradient, though the adapter is not active or the factor frozen"
    for key, flag in walk.book.flags.items():
        found = walk.model.get_parameter(key).grad
        assert flag or found is None, f"{key}: a gradient, though it is frozen"
        if flag and key in wanted.held:
            assert found is not None, f"{key}: no gradient"
            close_at(found, wanted.held[key], tolerance, scale, f"gradient of {key}", terms=wanted.terms.get(key, 0.0))
    if x.requires_grad:
        close_at(x.grad, wanted.x, tolerance, scale, "gradient of x")


def close_at(found: Tensor, wanted: Tensor, tolerance: float, scale: float, what: str, *, terms: float = 0.0) -> None:
    """Compare relative to a scale that is not that of the wanted tensor alone, which may be zero, or to its terms."""
    scale = max(scale, 1e-3)
    oracle.assert_close(found / scale, wanted / scale, tolerance, what, max(1e-3, terms / scale))


def narrow(walk: Walk) -> bool:
    """Return whether some factor is held in less than float64, and its gradient rounded to that."""
    return any(value.dtype != torch.float64 for state in walk.states().values() for value in state.params().values())


def descend(walk: Walk) -> None:
    """Take a step down every gradient there is, except on weights that hold an update and would lose the step."""
    held = {walk.book.stored(key)[0] for key in walk.book.merged()}
    with torch.no_grad():
        for name, value in walk.model.named_parameters():
            if value.grad is None or name in held or not value.numel():
                continue
            value.sub_(value.grad * (0.05 / max(oracle.largest(value.grad), 1e-6)))
            if not is_ours(name):
                walk.book.tensors[name] = value.detach().clone()
    walk.note_values()


def checkpointed(way: str) -> Callable[[Walk, random.Random], str]:
    def event(walk: Walk, rng: random.Random) -> str:
        switched = [module for module in walk.model.modules() if hasattr(module, "checkpointing")]
        for module in switched:
            module.checkpointing = way
        try:
            return train(walk, rng)
        finally:
            for module in switched:
                del module.checkpointing

    return event


def slope(y: Tensor, x: Tensor) -> Tensor:
    """Return the squared slope of the output by the input, whose gradient takes second derivatives."""
    return torch.autograd.grad(y.square().sum(), x, create_graph=True)[0].square().sum()


def penalize(walk: Walk, rng: random.Random) -> str | None:
    """Go back through a gradient, as a gradient penalty does."""
    if not walk.kind.has_second_derivative:
        return None
    x = walk.input(rng).requires_grad_()
    walk.model.zero_grad(set_to_none=True)
    wanted = oracle.differentiate(walk.book, walk.states(), x, slope)
    slope(walk.model(x), x).backward()
    compare_gradients(walk, wanted, x)
    walk.model.zero_grad(set_to_none=True)
    return f"{tuple(x.shape)}"


def anomaly(walk: Walk, rng: random.Random) -> str:
    with torch.autograd.set_detect_anomaly(True):
        return train(walk, rng)


def accumulate(walk: Walk, rng: random.Random) -> str:
    """Make two graphs, with an evaluation between them, and go back through them in either order."""
    walk.model.zero_grad(set_to_none=True)
    x, z = walk.input(rng), walk.input(rng)
    first = walk.model(x)
    with torch.no_grad():
        walk.compare(walk.model(z), z)
    second = walk.model(x)
    pull = torch.ones_like(first)
    wanted = oracle.differentiate(walk.book, walk.states(), x, oracle.times(pull))
    for y in rng.sample([first, second], 2):
        if y.requires_grad:
            (y * pull / 2).sum().backward()
    compare_gradients(walk, wanted, x.detach())
    walk.model.zero_grad(set_to_none=True)
    return f"{tuple(x.shape)}"


# ---- modes


def within(*modes: Callable[[], AbstractContextManager[Any]]) -> Callable[[Walk, random.Random], str]:
    def event(walk: Walk, rng: random.Random) -> str:
        x = walk.input(rng)
        for mode in modes:
            with mode():
                y = walk.model(x)
            walk.compare(y, x)
        return f"{tuple(x.shape)}"

    return event


def under_autocast(walk: Walk, rng: random.Random) -> str:
    if walk.book.dtype == torch.float64:  # which autocast leaves alone
        walk.model.float()
        walk.note_cast(torch.float32)
    x = walk.input(rng)
    with torch.autocast("cpu", torch.bfloat16):
        y = walk.model(x)
        walk.compare(y, x, tolerance=TOLERANCE[torch.bfloat16])
        with torch.autocast("cpu", enabled=False):
            walk.compare(walk.model(x), x)
    if y.requires_grad:
        y.float().sum().backward()
    walk.model.zero_grad(set_to_none=True)
    return f"{tuple(x.shape)}"


def switch_mode(walk: Walk, rng: random.Random) -> str:
    """Switch between train() and eval(), which differ in what torch's own encoder runs."""
    walk.model.train(not walk.model.training)
    assert all(state.training == walk.model.training for state in walk.states().values())
    return "train" if walk.model.training else "eval"


# ---- forms of input


def shaped(*shapes: tuple[int, ...]) -> Callable[[Walk, random.Random], str | None]:
    def event(walk: Walk, rng: random.Random) -> str | None:
        known = [shape for shape in shapes if len(shape) <= walk.kind.most_axes]
        if not known:
            return None
        x = walk.input(rng, rng.choice(known))
        with rng.choice([nullcontext, torch.no_grad])():
            y = walk.model(x)
        walk.compare(y, x)
        return f"{tuple(x.shape)}" + (train(walk, rng, x=x, update=False) and "")

    return event


def strided(walk: Walk, rng: random.Random) -> str:
    """Give an input that is a transposed, a sliced, a flipped or an expanded view."""
    x = walk.input(rng, (4, 3))
    way = rng.choice(["transposed", "sliced", "expanded", "offset"])
    x = {
        "transposed": lambda: x.transpose(0, 1),
        "sliced": lambda: x[::2, 1:],
        "expanded": lambda: x[:1].expand(3, *x.shape[1:]),
        "offset": lambda: x[1:],
    }[way]()
    train(walk, rng, x=x, update=False)
    return way


def by_keyword(walk: Walk, rng: random.Random) -> str:
    """Call by keyword the model, and one adapted layer."""
    x = walk.input(rng)
    walk.compare(walk.model(x=x), x)
    path = rng.choice(walk.kind.linears)
    if walk.kind.layout(f"{path}.weight") == ("out", "in") and not walk.book.hooks.get(path):
        layer = walk.host(path)
        z = torch.randn(2, layer.in_features, dtype=walk.book.dtype)
        oracle.assert_close(layer(input=z), layer(z), 1e-12 if z.dtype == torch.float64 else 1e-5, "keyword")
    return path


# ---- threads


class Interruption:
    """Runs something in another thread, to its end, before the n-th line of the library that this thread executes."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.at, self.act, self.lines, self.errors = at, act, 0, []

    def __enter__(self) -> "Interruption":
        self.before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self.before)

    def _call(self, frame: FrameType, event: str, arg: object) -> Any:
        return self._line if "tnadapt_torch" in frame.f_code.co_filename else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                thread = threading.Thread(target=self._run)
                thread.start()
                thread.join(timeout=20)
        return self._line

    def _run(self) -> None:
        try:
            self.act()
        except BaseException as error:  # handed to the thread that trains
            self.errors.append(error)


def threads(walk: Walk, rng: random.Random) -> str:
    """Evaluate in a second thread at some line of the first one's training."""
    x, z = walk.input(rng), walk.input(rng)
    wanted = walk.wanted(z)

    def evaluate() -> None:
        with rng.choice([torch.no_grad, torch.inference_mode, torch.enable_grad])():
            oracle.assert_close(walk.model(z), wanted, walk.tolerance(), "output in the second thread")

    with Interruption(0, evaluate) as counted, torch.enable_grad():
        walk.model(x)
    places = sorted(rng.sample(range(1, counted.lines + 1), min(4, counted.lines)))
    for at in places:
        with Interruption(at, evaluate) as interruption:
            train(walk, rng, x=x, update=False)
        if interruption.errors:
            raise interruption.errors[0]
    return f"at lines {places} of {counted.lines}"
