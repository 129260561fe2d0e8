"""Products of factors that are made for all sites at once, with gradients: in a block as outside of it."""

import copy
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError, checkpoint

import tnadapt_torch
from tests.thorough import IS_THOROUGH, left_to_laws
from tests.torch.test_layer import SPECS, Block, Program, adapted
from tnadapt import AdapterSpec, SiteError, families

PROGRAMS = 600 if IS_THOROUGH else 11
JOINT: dict[str, tuple[Callable[[], AdapterSpec], dict[str, Any]]] = {
    "metatt": (families.metatt, {}),
    "fact_tt": (families.fact_tt, {}),
    "fact_tk": (families.fact_tk, {}),
    "tt_lora": (lambda: families.tt_lora(out_order=2, in_order=2), {}),
    "tera": (lambda: families.tera(out_order=1, in_order=2), {}),
    "loretta": (lambda: families.loretta(out_order=1, in_order=2), {}),
    "lokr": (families.lokr, {}),
}
X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def specs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `adapted` know the families whose sites share products."""
    for name, made in JOINT.items():
        monkeypatch.setitem(SPECS, name, made)


class InBlocks(Program):
    """The same calls, in blocks that open and close where no backward pass waits."""

    def __init__(self, block: Block, state: Any, seed: int, *, is_fixed: bool) -> None:
        super().__init__(block, state, seed)
        self.is_fixed, self.stack = is_fixed, ExitStack()
        self.used = 0
        self.turn()

    def turn(self) -> None:
        """Leave the block, and maybe enter another one."""
        self.back()
        if self.is_fixed:
            self.stack.close()
        if self.random.random() < 0.9 and self.is_fixed:
            self.stack.enter_context(self.state.fixed())

    def call(self) -> None:
        """Call layers in the general way too, as with another adapter beside."""
        if self.random.random() < 0.3:
            self.state.updates["second"].layer = None
        super().call()
        self.used += bool(self.state.joint)

    def write(self) -> None:
        """Change factors as an optimizer does that counts no change."""
        self.back()
        output = self.block(self.source[0] * 1.0)
        self.seen.append(output.detach())
        if output.requires_grad:
            output.sum().backward()
        for parameter in self.trained:
            parameter.data.mul_(0.95)

    def freeze(self) -> None:
        """Train one factor, or not any longer."""
        self.back()
        one = self.random.choice([*self.state.parameters()])
        one.requires_grad_(not one.requires_grad)

    def change(self) -> None:
        """Change x, or the adapter."""
        self.random.choice([super().change, self.turn, self.write, self.freeze])()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", [*JOINT, "lotr", "lorta", "vera", "lora"])
def test_any_calls_are_equal_to_those_outside_of_blocks(name: str) -> None:
    used = 0
    for seed in range(max(PROGRAMS // 11, 1)):
        found = []
        for is_fixed in (True, False):
            program = InBlocks(*adapted(name, is_joined=True), seed, is_fixed=is_fixed)
            found.append(program.run(16))
            used += program.used
        (ours, error), (theirs, expected) = found
        if len(ours) < len(theirs):  # a frozen factor changed, of which only a product is saved outside
            assert error.startswith("one of the variables needed for gradient computation")
        else:
            assert (len(ours), bool(error)) == (len(theirs), bool(expected)), (error, expected)
        for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8, msg=lambda m: f"{name} {seed} {number}: {m}")  # noqa: B023
    assert used  # in a layer of six inputs, even the product of a LoRA is small


def gradients(block: Block, state: Any) -> list[Tensor | None]:
    """Return the gradients of a pass, None for a factor that has none."""
    block(X).square().sum().backward()
    found = [one.grad for one in state.parameters()]
    for one in state.parameters():
        one.grad = None
    return found


def same(ours: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    assert [one is None for one in ours] == [one is None for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["lotr", "tt_lora"])
def test_a_factor_of_a_site_that_did_not_run_has_the_gradient_that_it_has_outside(name: str) -> None:
    """None where no other site has it: an optimizer with decay would move it otherwise."""
    found = []
    for is_fixed in (True, False):
        block, state = adapted(name, is_joined=True)
        with state.fixed() if is_fixed else ExitStack():
            block.first(X * 1.0).sum().backward()
        found.append([one.grad for one in state.parameters()])
    same(*found)
    assert any(one is None for one in found[0])


def test_passes_share_products_until_a_backward_pass_has_used_them() -> None:
    block, state = adapted("lotr", is_joined=True)
    with state.fixed():
        one = block(X)
        kept = {key: value.rows for key, value in state.joint.items()}
        other = block(X * 2.0)
        assert kept
        assert all(state.joint[key].rows is rows for key, rows in kept.items())
        one.sum().backward()
        assert not any(value.rows for value in state.joint.values())
        other.sum().backward()  # of the same products, one after the other, as outside
    ours = [one.grad for one in state.parameters()]
    block, state = adapted("lotr", is_joined=True)
    (block(X) + block(X * 2.0)).sum().backward()
    same(ours, [one.grad for one in state.parameters()])


@pytest.mark.parametrize("is_reentrant", [True, False])
@pytest.mark.parametrize("name", ["lotr", "fact_tk"])
def test_checkpointed_regions_are_as_outside(name: str, is_reentrant: bool) -> None:
    def step(block: Block) -> None:
        x = (X * 1.0).requires_grad_()
        for _ in range(2):
            x = checkpoint(block, x, use_reentrant=is_reentrant)
        x.square().sum().backward()

    found = []
    for is_fixed in (True, False):
        block, state = adapted(name, is_joined=True)
        with state.fixed() if is_fixed else ExitStack():
            step(block)
        found.append([one.grad for one in state.parameters()])
    same(*found)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("name", ["lotr", "metatt"])
def test_a_region_that_is_recomputed_on_the_other_side_of_a_block_is_refused(name: str, is_first: bool) -> None:
    """It would save other tensors than it did, here all of one shape, and give wrong gradients."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    state = tnadapt_torch.attach(model, name, target_modules=["0", "1"], rank=2, seed=0)
    x = torch.ones(2, 2, requires_grad=True)
    with state.fixed() if is_first else ExitStack():
        y = checkpoint(model, x, use_reentrant=False).square().sum()
        assert bool(state.joint) == is_first
    with (
        ExitStack() if is_first else state.fixed(),
        pytest.raises(CheckpointError, match=r"metadata|number of tensors"),
    ):
        y.backward()


def test_a_graph_outlives_its_block_and_any_number_of_passes() -> None:
    block, state = adapted("metatt", is_joined=True)
    with state.fixed():
        y = block(X).square().sum()
    wanted = [one for one in state.parameters() if one.requires_grad]
    first = torch.autograd.grad(y, wanted, retain_graph=True)
    some = torch.autograd.grad(y, wanted[1:2], retain_graph=True)
    outer = torch.autograd.grad(
        sum(one.square().sum() for one in torch.autograd.grad(y, wanted, create_graph=True)), wanted
    )
    torch.testing.assert_close(some[0], first[1])
    y = block(X).square().sum()
    expected = torch.autograd.grad(y, wanted, create_graph=True)
    same(list(first), list(expected))
    same(list(outer), list(torch.autograd.grad(sum(one.square().sum() for one in expected), wanted)))


def test_a_factor_that_changed_before_the_backward_pass_is_refused() -> None:
    block, state = adapted("lotr", is_joined=True)
    for change in (lambda one: one.mul_(2.0), lambda one: setattr(one, "data", one.data * 2.0)):
        with state.fixed():
            y = block(X).sum()
            with torch.no_grad():
                for one in state.parameters():
                    change(one)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.backward()


def test_threads_may_share_products() -> None:
    block, state = adapted("fact_tk", is_joined=True)
    expected = gradients(block, state)
    with state.fixed():
        threads = [threading.Thread(target=lambda: block(X).square().sum().backward()) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    same([one.grad for one in state.parameters()], [None if one is None else 4.0 * one for one in expected])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_have_the_dtype_of_the_layer_and_are_cast_once(dtype: torch.dtype) -> None:
    found = []
    for is_fixed in (True, False):
        block, state = adapted("lorta", is_joined=True, dtype=dtype)
        state.float()
        is_cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float32)
        with state.fixed() if is_fixed else ExitStack(), is_cast:
            y = block(X.to(dtype))
            if is_fixed:
                assert {key[1] for key in state.joint} == {torch.bfloat16}
            y.float().square().sum().backward()
        found.append([one.grad for one in state.parameters()])
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=5e-2, atol=5e-2 * float(other.abs().max()))


def test_a_resized_or_copied_adapter_makes_products_of_its_own() -> None:
    block, state = adapted("lotr", is_joined=True)
    with state.fixed():
        gradients(block, state)
        twin: Any = copy.deepcopy(block)
        other = next(one for one in twin.children() if type(one) is type(state))
        with torch.no_grad():
            for one in other.parameters():
                one.mul_(0.5)
        with other.fixed():
            ours = gradients(twin, other)
        same(ours, gradients(twin, other))
        state.half()
        state.double()
        same(gradients(block, state), gradients(*pair(state, block)))


def pair(state: Any, block: Block) -> tuple[Block, Any]:
    """Return a copy of a block with its adapter, in no block of `fixed()`."""
    twin: Any = copy.deepcopy(block)
    return twin, next(one for one in twin.children() if type(one) is type(state))


def test_a_first_layer_whose_x_needs_no_gradient_shares_products_with_the_others() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    state = tnadapt_torch.attach(model, "lotr", target_modules=["0", "1"], rank=2, seed=0)
    with state.fixed():
        model(torch.ones(3, 4))
        assert len(state.joint) == 1


@left_to_laws("attaches every family that takes these sizes; make laws runs it")
@pytest.mark.parametrize("name", families.__all__)
def test_every_family_is_in_a_block_as_outside(name: str) -> None:
    for words in ({"rank": 2}, {}, {"rank": 2, "sizes": {"head": 2}}, {"rank": 2, "sizes": {"o1": 2, "i1": 2}}):
        model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(3)]).double()
        try:
            state = tnadapt_torch.attach(model, name, target_modules=["0", "1", "2"], seed=0, **words)
            break
        except SiteError:
            continue
    else:
        pytest.skip("takes other sizes")
    state.double()
    with torch.no_grad():
        for parameter in state.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    found = []
    for is_fixed in (True, False):
        with state.fixed() if is_fixed else ExitStack():
            total = model(torch.ones(5, 16, dtype=torch.float64)).square().sum()
            found.append(torch.autograd.grad(total, [*state.parameters()]))
    same(*map(list, found))
