"""Layers that are called together with their updates: as the general way, whatever is called in whatever order."""

import gc
import random
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tnadapt_torch
from tests.thorough import IS_THOROUGH
from tnadapt import AdapterSpec, families

PROGRAMS = 800 if IS_THOROUGH else 16
NAMES = ["first", "second", "third", "last"]
SPECS: dict[str, tuple[Callable[[], AdapterSpec], dict[str, Any]]] = {
    "lora": (families.lora, {}),
    "vera": (families.vera, {}),
    "lotr": (families.lotr, {}),
    "lorta": (families.lorta, {"sizes": {"head": 2}}),
    "tlora": (families.tlora, {}),
    "lora_xs": (families.lora_xs, {}),
    "loha": (families.loha, {}),
    "pissa": (families.pissa, {}),
}


class Block(nn.Module):
    """Four layers whose inputs have one width, and one more."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 4, bias=False)
        self.third = nn.Linear(6, 6)
        self.last = nn.Linear(6, 6)
        self.down = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        return self.last(self.first(x) * self.third(x)) + self.down(self.second(x))


def adapted(name: str, *, is_joined: bool, dtype: torch.dtype = torch.float64) -> tuple[Block, Any]:
    """Return a block with an adapter of random values; without `is_joined`, each layer is served in the general way."""
    torch.manual_seed(0)
    block = Block().to(dtype)
    make, given = SPECS[name]
    state = tnadapt_torch.attach(block, make(), target_modules=[*NAMES, "down"], rank=2, seed=0, **given)
    state.to(dtype)
    with torch.no_grad():
        for parameter in state.parameters():
            parameter.normal_(0, 0.5)
    if not is_joined:
        for update in state.updates.values():
            update.layer = None
    return block, state


class Program:
    """Random calls of the layers of a block: of one x or several, in any state of autograd, with changes in between."""

    def __init__(self, block: Block, state: Any, seed: int) -> None:
        self.block, self.state, self.random = block, state, random.Random(seed)
        self.trained = [one for one in state.parameters() if one.requires_grad]
        self.source = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        self.seen: list[Tensor] = []
        self.open: list[Tensor] = []
        self.only_leaves = True
        self.read()

    def read(self) -> None:
        """Make a new x: a leaf or not, of two or three axes, with or without a gradient."""
        leaf = self.source.clone().requires_grad_(self.random.random() < 0.8)
        x = leaf if self.random.random() < 0.3 else leaf * 2.0
        self.leaf, self.x = leaf, x.reshape(-1, 6) if self.random.random() < 0.3 else x
        self.only_leaves = self.x.is_leaf and (self.only_leaves or not self.open)

    def call(self) -> None:
        """Call some layers on the same x."""
        for name in self.random.choices(NAMES, k=self.random.choice([1, 1, 2, 4])):
            self.keep(self.block.get_submodule(name)(self.x))

    def call_in_regions(self) -> None:
        """Call layers in checkpointed regions, each with its own or all in one."""
        names = self.random.sample(NAMES, 3)
        is_reentrant = self.random.random() < 0.3
        groups = [names] if self.random.random() < 0.5 else [names[:1], names[1:]]
        for group in groups:

            def region(x: Tensor, group: list[str] = group) -> Tensor:
                return torch.cat([self.block.get_submodule(name)(x) for name in group], -1)

            self.keep(checkpoint(region, self.x, use_reentrant=is_reentrant))

    def call_without_gradient(self) -> None:
        """Call layers without a gradient."""
        with torch.inference_mode() if self.random.random() < 0.3 else torch.no_grad():
            for name in self.random.choices(NAMES, k=3):
                self.seen.append(self.block.get_submodule(name)(self.x).clone())

    def call_disabled(self) -> None:
        """Call a layer with the update, and another one without."""
        self.keep(self.block.first(self.x))
        with self.state.disabled():
            self.keep(self.block.third(self.x))

    def step(self) -> None:
        """Change factors in place, as an optimizer does, or before the backward pass."""
        if self.random.random() < 0.7:
            self.back()
        with torch.no_grad():
            for parameter in self.trained:
                parameter.mul_(0.9)

    def swap(self) -> None:
        """Give factors other memory, as a conversion does."""
        self.back()
        for parameter in self.trained:
            parameter.data = parameter.data * 1.1

    def change(self) -> None:
        """Change x in place between two calls."""
        self.keep(self.block.first(self.x))
        if self.x.is_leaf and self.x.requires_grad:
            return
        self.x.mul_(0.5)
        self.call()

    def back(self) -> None:
        """Run a backward pass of everything that waits, in one or in two parts, or of its square and its gradient."""
        if not self.open:
            return
        way = self.random.choice(["one", "two", "twice"])
        if way == "twice" and self.leaf.requires_grad and all(one.grad_fn is not None for one in self.open):
            total = sum(one.square().sum() for one in self.open)
            (grad,) = torch.autograd.grad(total, self.leaf, create_graph=True, allow_unused=True)
            if grad is not None:
                self.seen.append(grad.detach())
                grad.square().sum().backward()
        else:
            halves = [self.open] if way == "one" else [self.open[::2], self.open[1::2]]
            for number, half in enumerate(halves, 1):
                if half:  # layers that read one x share a node, as all that comes before x is shared
                    is_last = number == len(halves) or self.only_leaves
                    sum(one.sum() for one in half).backward(retain_graph=not is_last)
        self.seen += [one.grad.clone() for one in (*self.trained, self.leaf) if one.grad is not None]
        self.open = []
        self.only_leaves = self.x.is_leaf

    def keep(self, output: Tensor) -> None:
        """Keep an output."""
        self.seen.append(output.detach().clone())
        if output.requires_grad:
            self.open.append(output)

    def run(self, length: int) -> tuple[list[Tensor], str]:
        """Run a program of some steps, and return everything that was seen, and what torch refused at last."""
        steps = [
            self.read,
            self.read,
            self.call,
            self.call,
            self.call,
            self.call,
            self.call_in_regions,
            self.call_without_gradient,
        ]
        steps += [self.call_disabled, self.step, self.swap, self.change, self.back]
        try:
            for _ in range(length):
                self.random.choice(steps)()
            self.back()
        except RuntimeError as error:
            return self.seen, str(error)[:60]
        return self.seen, ""


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", SPECS)
def test_any_calls_are_equal_to_those_in_the_general_way(name: str) -> None:
    for seed in range(PROGRAMS // len(SPECS)):
        (ours, error), (theirs, expected) = (
            Program(*adapted(name, is_joined=joined), seed).run(12) for joined in (True, False)
        )
        assert (len(ours), error) == (len(theirs), expected)
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=lambda m: f"{name} {seed} {number}: {m}")  # noqa: B023


@pytest.mark.parametrize("name", ["lora", "vera", "loha"])
def test_derivatives_of_every_kind_are_those_of_the_general_way(name: str) -> None:
    found = []
    for is_joined in (True, False):
        block, state = adapted(name, is_joined=is_joined)
        trained = [one for one in state.parameters() if one.requires_grad]
        leaf = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        x = leaf * 2.0
        y = torch.cat([block.first(x), block.second(x), block.third(x)], 1)
        every = torch.eye(y.numel(), dtype=torch.float64).reshape(-1, *y.shape)
        parts = torch.autograd.grad(
            y, [leaf, *trained], every, is_grads_batched=True, retain_graph=True, allow_unused=True
        )

        def two(leaf: Tensor, block: Block = block) -> Tensor:
            x = leaf * 1.0
            return block.first(x) * block.third(x)

        outer = [
            torch.autograd.functional.jacobian(two, leaf, vectorize=True, strategy=strategy)
            for strategy in ("reverse-mode", "forward-mode")
        ]
        second = torch.autograd.functional.hessian(lambda leaf, two=two: two(leaf).square().sum(), leaf)
        (torch.relu_(block.first(x)).sum() + block.second(x).mul_(2.0).sum()).backward()
        found.append([*(part for part in parts if part is not None), *outer, second, leaf.grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_equal_runs_are_equal_to_the_last_bit() -> None:
    def trained() -> list[Tensor]:
        block, state = adapted("lora", is_joined=True, dtype=torch.float32)
        optimizer = torch.optim.AdamW([one for one in state.parameters() if one.requires_grad], lr=1e-2)
        source = torch.Generator().manual_seed(3)
        for _ in range(5):
            block(torch.randn(7, 6, generator=source)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [*state.parameters(), block(torch.ones(1, 6))]

    for one, other in zip(trained(), trained(), strict=True):
        assert torch.equal(one, other)


def test_layers_that_read_the_same_x_multiply_it_once() -> None:
    """In both passes: by the rows of all of them, or by a factor that they share. Their own x is that of no other."""
    counts = {}
    for name in ("lora", "vera"):
        for is_joined in (True, False):
            block, _ = adapted(name, is_joined=is_joined)
            x = torch.ones(5, 6, dtype=torch.float64, requires_grad=True) * 2.0
            with torch.profiler.profile() as profile:
                torch.cat([block.first(x), block.second(x), block.third(x)], 1).sum().backward()
            names = [event.name for event in profile.events()]
            counts[name, is_joined] = sum(
                names.count(f"aten::{kind}") for kind in ("mm", "addmm", "addmm_", "add", "add_")
            )
    assert counts["lora", True] <= counts["lora", False] - 10
    assert counts["vera", True] <= counts["vera", False] - 7


def test_a_backward_pass_under_autocast_of_a_forward_pass_outside_of_it() -> None:
    found = []
    for is_joined in (True, False):
        block, state = adapted("lora", is_joined=is_joined, dtype=torch.float32)
        output = block(torch.ones(3, 6)).square().sum()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output.backward()
        found.append([one.grad for one in state.parameters() if one.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)  # the general way rounds to bfloat16 here


def test_what_sees_or_exchanges_a_product_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function that layers call, the class that they have, and modes of functions."""
    block, _ = adapted("lora", is_joined=True)
    x = torch.ones(2, 6, dtype=torch.float64)
    expected = 2.0 * block.first(x)
    original, forward = torch.nn.functional.linear, nn.Linear.forward

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            return 2.0 * result if function in {original, torch.addmm} else result

    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", lambda layer, x: forward(layer, x) + 1.0)
        torch.testing.assert_close(block.first(x), expected / 2.0 + 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", lambda *args: original(*args) * 0.0)
        assert not torch.allclose(block.first(x), expected / 2.0)
    with Mode():
        assert not torch.allclose(block.first(x), expected / 2.0)


def test_a_weight_without_use_in_the_backward_pass_is_not_held() -> None:
    """If x needs no gradient, the first layer's weight may change before the backward pass: a merge, or a load."""
    block, state = adapted("vera", is_joined=True)
    output = block.first(torch.ones(2, 6, dtype=torch.float64))
    with torch.no_grad():
        block.first.weight.mul_(2.0)
    output.sum().backward()
    assert any(one.grad is not None and bool(one.grad.any()) for one in state.parameters())


def test_a_graph_is_let_go_when_another_layer_is_called() -> None:
    block, _ = adapted("lora", is_joined=True)
    x = torch.ones(2, 6, dtype=torch.float64, requires_grad=True) * 1.0
    seen = weakref.ref(x)
    block.first(x)  # the others never read it
    del x
    block.down(torch.ones(2, 4, dtype=torch.float64))
    gc.collect()
    assert seen() is None
