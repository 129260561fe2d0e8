"""The optimizer's state of factors that begin anew: dropped, or most of it set to zero."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tnadapt import SiteError
from tnadapt_torch._sharded import laid_like
from tnadapt_torch._state import COUNTS

__all__: list[str] = []


def check_held(optimizer: object, parameters: Sequence[Tensor]) -> None:
    """Raise SiteError unless an optimizer holds these parameters."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise SiteError(
            f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}.\n"
            "Pass the optimizer of the adapter's parameters."
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if missing := sum(id(parameter) not in held for parameter in parameters):
        raise SiteError(
            f"optimizer: expected one that holds all {len(parameters)} trained factors of the adapter, got one without "
            f"{missing} of them.\nMake it of state.parameters()."
        )


def reset_moments(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], prune: float | None, seed: int
) -> None:
    """Drop the state of these parameters; or set a random fraction `prune` of each moment to zero, and keep the rest.

    All moments of a parameter lose the same entries: Adam divides the first by the root of the second, which would be 0
    where that one alone was lost and the gradient is 0, as that of LoRA's A is at a restart. The choice follows from
    the seed, so that it is the same on all processes. Gradients that are left are dropped.
    """
    random = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = None
        if prune is None:
            optimizer.state.pop(parameter, None)
            continue
        kept = torch.rand(parameter.shape, generator=random, dtype=torch.float64) >= prune
        for word, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and word not in COUNTS:
                value.mul_(laid_like(kept.to(value.device, value.dtype), value))
