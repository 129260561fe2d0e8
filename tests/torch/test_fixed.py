"""Products of factors alone, kept in a block of `fixed()`: equal to those of every call, and never of old factors."""

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnadapt_torch
from tests.torch.test_layer import SPECS, Block, adapted
from tnadapt import families
from tnadapt_torch._run.fixed import split
from tnadapt_torch._run.lower import lower_apply

X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def outputs(block: Block) -> Tensor:
    with torch.no_grad():
        return torch.cat([block.get_submodule(name)(X) for name in ("first", "second", "third")], 1)


@pytest.mark.parametrize("is_joined", [True, False])
@pytest.mark.parametrize("name", ["lora", "lorta", "vera", "loha", "pissa"])
def test_the_outputs_are_the_same_and_follow_every_change(name: str, is_joined: bool) -> None:
    block, state = adapted(name, is_joined=is_joined)
    with state.fixed():
        for change in (lambda one: one, lambda one: one.mul_(0.5), lambda one: one.add_(1.0)):
            with torch.no_grad():
                for parameter in state.parameters():
                    change(parameter)
            before = outputs(block)
            torch.testing.assert_close(outputs(block), before, rtol=0, atol=0)
            kept, state.products = state.products, None
            torch.testing.assert_close(outputs(block), before, rtol=1e-12, atol=1e-12)
            state.products = kept
            assert kept or name in {"lora", "pissa"}  # which make no products of factors
    assert state.products is None


def test_nothing_is_made_of_factors_alone_in_a_second_call() -> None:
    block = nn.Sequential(nn.Linear(64, 64, bias=False)).double()
    state = tnadapt_torch.attach(block, families.lorta(), target_modules=["0"], rank=2, seed=0, sizes={"head": 2})
    state.updates["0"].layer = None
    wide = torch.ones(3, 64, dtype=torch.float64)
    with state.fixed(), torch.no_grad():
        block(wide)
        with torch.profiler.profile() as profile:
            block(wide)
    kinds = [
        event.name
        for event in profile.events()
        if event.name in ("aten::mul", "aten::mm", "aten::addmm", "aten::_to_copy")
    ]
    assert len(kinds) <= 3  # of the layer, and two as those of LoRA


def test_factors_are_cast_once() -> None:
    block = nn.Sequential(nn.Linear(64, 64)).bfloat16()
    state = tnadapt_torch.attach(block, families.lora(), target_modules=["0"], rank=2, seed=0)
    wide = torch.ones(3, 64, dtype=torch.bfloat16)
    with state.fixed(), torch.no_grad():
        expected = block(wide)
        with torch.profiler.profile() as profile:
            torch.testing.assert_close(block(wide), expected, rtol=0, atol=0)
    assert not [event.name for event in profile.events() if event.name == "aten::_to_copy"]


def test_training_lets_go_of_what_calls_without_gradients_keep() -> None:
    """An optimizer with fused=True counts no change."""
    block, state = adapted("lorta", is_joined=True)
    with state.fixed():
        outputs(block)
        assert state.products
        block(X).sum().backward()
        assert not state.products
        for parameter in state.parameters():
            parameter.data.mul_(0.5)
        kept = outputs(block)
    torch.testing.assert_close(kept, outputs(block), rtol=1e-12, atol=1e-12)


def test_a_resized_moved_or_cast_adapter_is_noticed() -> None:
    block, state = adapted("lotr", is_joined=True)
    with state.fixed():
        outputs(block)
        state.load_state_dict({name: 2.0 * value for name, value in state.state_dict().items()})
        expected = outputs(block)
        state.float()
        state.double()
        torch.testing.assert_close(outputs(block), expected, rtol=1e-6, atol=1e-6)
        for parameter in state.parameters():
            parameter.data = parameter.data * 0.0
        plain = copy.deepcopy(block)
        torch.testing.assert_close(outputs(block), outputs(plain), rtol=1e-12, atol=1e-12)


def test_blocks_of_threads_end_in_any_order() -> None:
    _, state = adapted("lora", is_joined=True)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with state.fixed():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with state.fixed():
        thread.start()
        entered.wait()
    assert state.products is not None
    leave.set()
    thread.join()
    assert state.products is None


def test_a_copy_made_in_a_block_is_outside_of_it() -> None:
    block, state = adapted("vera", is_joined=True)
    with state.fixed():
        outputs(block)
        twin: Any = copy.deepcopy(block)
    assert tnadapt_torch.states_of(twin)[0].products is None if hasattr(tnadapt_torch, "states_of") else True
    torch.testing.assert_close(outputs(twin), outputs(block))


@pytest.mark.parametrize("name", SPECS)
def test_a_split_code_computes_the_same(name: str) -> None:
    _, state = adapted(name, is_joined=True)
    update = state.updates["first"]
    code = lower_apply(update.network, 1024)
    factors = [ref.read().detach() for ref in update.refs]
    free, rest = split(code, 2)
    made = factors if free is None else free(*factors)
    y = torch.zeros(3, 6, dtype=torch.float64)
    torch.testing.assert_close(rest(y, X, *made), code(y, X, *factors), rtol=0, atol=0)


def test_a_factor_that_is_replaced_is_noticed_whatever_the_way() -> None:
    for name in ("loha", "lora"):
        block, state = adapted(name, is_joined=True)
        if name == "lora":
            state.float()  # its factors are cast in each call
        with state.fixed():
            outputs(block)
            for parameter in state.parameters():
                parameter.data = parameter.data * 2.0
            kept = outputs(block)
        torch.testing.assert_close(kept, outputs(block), rtol=1e-12, atol=1e-12)
