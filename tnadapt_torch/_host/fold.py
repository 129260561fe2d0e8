"""The update folded into the weight, x (W + dW), by torch's parametrizations: for full-rank specs at many tokens."""

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
    """A weight with its update added while its adapter is active."""

    def __init__(self, hook: Hook, weight: Weight) -> None:
        """Args: what serves the weight's sites; the weight."""
        super().__init__()
        self.hook = hook
        self.weight = weight

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the module uses."""
        if not self.hook.owner.active:
            return weight
        return weight + self.weight.lay(self.hook.delta(weight))


def check_foldable(weights: Mapping[str, Weight], dropout: float) -> None:
    """Raises SiteError for dropout, for a weight of low precision and for one that is parametrized already."""
    if dropout:
        raise SiteError(f"fold: has no x of its own to drop entries of.\nHowever, dropout is {dropout}.")
    for path, weight in weights.items():
        if weight.is_folded:
            raise SiteError(f"{path}: its weight is parametrized already; one update can be folded into it.")
        if (dtype := weight.parameter.dtype) not in FULL_PRECISION:
            raise SiteError(f"{path}: folding needs a float32 or float64 weight; an update would be lost in {dtype}.")


def fold_in(weight: Weight, hook: Hook) -> None:
    """Have a module use its weight with the update added."""
    parametrize.register_parametrization(weight.module, weight.name, Folded(hook, weight), unsafe=True)


def unfold(weight: Weight) -> None:
    """Give a module its own weight back, the same parameter as before."""
    if weight.is_folded:
        parametrize.remove_parametrizations(weight.module, weight.name, leave_parametrized=False)
