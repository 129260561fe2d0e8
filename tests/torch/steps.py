"""An optimizer of torch as a rule of tests/descent.py, on an adapter's state without a host."""

import copy
import pickle
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from tests.descent import trained_in
from tnadapt import Adapter
from tnadapt.binding import Params
from tnadapt_torch import AdapterState

Maker = Callable[[AdapterState], torch.optim.Optimizer]


def state_of(adapter: Adapter, params: Mapping[str, np.ndarray], dtype: torch.dtype = torch.float64) -> AdapterState:
    values = {name: torch.tensor(np.asarray(value), dtype=dtype) for name, value in params.items()}
    return AdapterState(adapter, values, name="default", dropout=0.0)


def give(state: AdapterState, grads: Mapping[str, np.ndarray]) -> None:
    """Set the gradients of the factors."""
    for name, value in state.params().items():
        if name in grads:
            value.grad = torch.tensor(np.asarray(grads[name])).to(value)


def values_of(state: AdapterState) -> Params:
    return {name: state.params()[name].detach().double().numpy().copy() for name in trained_in(state.adapter)}


class TorchRule:
    """Steps of one optimizer. The factors are its own: what they should be is checked."""

    def __init__(self, adapter: Adapter, params: Params, make: Maker, dtype: torch.dtype = torch.float64) -> None:
        self.state = state_of(adapter, params, dtype)
        self.optimizer = make(self.state)

    def __call__(self, values: Params, grads: Params) -> Params:
        assert all(np.array_equal(value, values[name]) for name, value in values_of(self.state).items())
        give(self.state, grads)
        self.optimizer.step()
        return values_of(self.state)


COPIES: list[Callable] = [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))]


def expect_a_copy_to_train(copied: Callable, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Copy a toy model with its optimizer after two steps: both take the same third step, and share nothing."""

    def train(one: nn.Module, own: torch.optim.Optimizer) -> None:
        own.zero_grad()
        one(torch.arange(10).reshape(2, 5)).square().mean().backward()
        own.step()

    train(model, optimizer)
    train(model, optimizer)
    twin, other = copied((model, optimizer))
    train(model, optimizer)
    train(twin, other)
    for (name, value), (_, mine) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(value, mine), name
    alone = copied(optimizer)
    assert alone.adapted is not optimizer.adapted
    assert alone.param_groups[0]["params"][0] is not optimizer.param_groups[0]["params"][0]
