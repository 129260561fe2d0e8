"""Fold an update into its weight, x (W + dW), by a torch parametrization: faster for full-rank specs at many tokens."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tnadapt import SiteError
from tnadapt_torch._host.weight import Weight
from tnadapt_torch._run import Hook

__all__: list[str] = []

FULL_PRECISION = (torch.float32, torch.float64)


class Folded(nn.Module):
    """The parametrization of a weight: it adds the update while the adapter is active."""

    def __init__(self, hook: Hook, weight: Weight) -> None:
        """Store the hook that computes the update of the weight, and the weight."""
        super().__init__()
        self.hook = hook
        self.weight = weight

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight that the module uses."""
        if not self.hook.owner.active:
            return weight
        return weight + self.weight.lay(self.hook.delta(weight))


def check_foldable(weights: Mapping[str, Weight], dropout: float) -> None:
    """Raise SiteError for dropout, for a low-precision weight and for a weight that is already parametrized."""
    if dropout:
        raise SiteError(
            f"fold: expected dropout=0, got dropout={dropout}.\n"
            "A folded update has no input of its own to apply dropout to. Leave out dropout."
        )
    for path, weight in weights.items():
        if storage := weight.storage:
            raise SiteError(
                f"{path}: expected a plain float32 or float64 weight to fold an update into, got {storage}.\n"
                "The update would be lost to the rounding of a quantized weight. Attach without folding, or to the "
                "model without quantization."
            )
        if weight.is_folded:
            raise SiteError(
                f"{path}: expected a weight without a parametrization, got one that is already parametrized.\n"
                "Only one update can be folded into a weight."
            )
        if (dtype := weight.parameter.dtype) not in FULL_PRECISION:
            raise SiteError(
                f"{path}: expected a float32 or float64 weight to fold an update into, got {dtype}.\n"
                "An update would be lost to rounding."
            )


def fold_in(weight: Weight, hook: Hook) -> None:
    """Parametrize the weight of a module so that the module uses it with the update added."""
    parametrize.register_parametrization(weight.module, weight.name, Folded(hook, weight), unsafe=True)


def unfold(weight: Weight) -> None:
    """Restore the weight of a module: the same parameter object as before."""
    if weight.is_folded:
        parametrize.remove_parametrizations(weight.module, weight.name, leave_parametrized=False)
