"""Faults planted in torch: a linear layer that is wrong in some circumstance, functions that copy or load wrongly."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from tests.torch.walk.user import Scaling

Plant = Callable[[pytest.MonkeyPatch], None]

# ---- linear layers that are wrong while a condition holds


def wrong_if(condition: Callable[[nn.Module, Tensor], Any]) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        true = nn.Linear.forward

        def forward(self: nn.Linear, input: Tensor) -> Tensor:
            y = true(self, input)
            return 1.5 * y if condition(self, input) else y

        patch.setattr(nn.Linear, "forward", forward)

    return plant


def wrong_by_keyword(patch: pytest.MonkeyPatch) -> None:
    true = nn.Linear.forward
    patch.setattr(
        nn.Linear, "forward", lambda self, *args, **words: true(self, *args, **words) * (1.5 if words else 1.0)
    )


def refuses_empty(patch: pytest.MonkeyPatch) -> None:
    def condition(module: nn.Module, x: Tensor) -> bool:
        if not x.numel():
            raise RuntimeError("an empty batch")
        return False

    wrong_if(condition)(patch)


def wrong_gradient(patch: pytest.MonkeyPatch) -> None:
    true = nn.Linear.forward

    def forward(self: nn.Linear, input: Tensor) -> Tensor:
        y = true(self, input)
        return y + 0.5 * (y - y.detach())

    patch.setattr(nn.Linear, "forward", forward)


class Once(torch.autograd.Function):
    """The identity, whose gradient cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.detach()


def once_differentiable(patch: pytest.MonkeyPatch) -> None:
    true = nn.Linear.forward
    patch.setattr(nn.Linear, "forward", lambda self, input: Once.apply(true(self, input)))


def keeps_fakes(patch: pytest.MonkeyPatch) -> None:
    """Keep a tensor of each layer from one call to the next, also of a call without numbers."""
    true, kept = nn.Linear.forward, {}

    def forward(self: nn.Linear, input: Tensor) -> Tensor:
        if id(self) not in kept or isinstance(input, FakeTensor):
            kept[id(self)] = input.new_ones(())
        return true(self, input) * kept[id(self)].to(input.dtype)

    patch.setattr(nn.Linear, "forward", forward)


def wrong_once_without(mark: Callable[[nn.Module], bool]) -> Plant:
    """Be wrong in a layer that lost something: its hook, or its parametrization."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        seen: set[int] = set()

        def condition(module: nn.Module, x: Tensor) -> bool:
            if mark(module):
                seen.add(id(module))
            return id(module) in seen and not mark(module)

        wrong_if(condition)(patch)

    return plant


def has_hook(table: str) -> Callable[[nn.Module], bool]:
    return lambda module: any(isinstance(one, Scaling) for one in getattr(module, table).values())


# ---- functions of torch and Python


def shares_when_copied(patch: pytest.MonkeyPatch) -> None:
    """Let a copy of a model share the numbers of the factors with the model."""
    true = copy.deepcopy

    def deepcopy(given: Any, memo: Any = None) -> Any:
        found = true(given, memo)
        if isinstance(given, nn.Module) and memo is None:
            for (name, old), new in zip(given.named_parameters(), found.parameters(), strict=True):
                if "tnadapt" in name:
                    new.data = old.data
        return found

    patch.setattr(copy, "deepcopy", deepcopy)


def load_state_dict_of_the_host(patch: pytest.MonkeyPatch) -> None:
    """Load the tensors of the host, and none of an adapter."""
    true = nn.Module.load_state_dict

    def load(self: nn.Module, values: dict[str, Any], strict: bool = True, assign: bool = False) -> Any:
        here = self.state_dict()
        return true(
            self, {key: here[key] if "tnadapt" in key else value for key, value in values.items()}, strict, assign
        )

    patch.setattr(nn.Module, "load_state_dict", load)


def stale_code(patch: pytest.MonkeyPatch) -> None:
    """Let compiled code go on with the model as it was when it was compiled."""
    patch.setattr(torch, "compile", lambda model, backend: copy.deepcopy(model))
