"""The update folded into the weight, x (W + dW), by torch's parametrizations: for full-rank specs at many tokens."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tnadapt import SiteError
from tnadapt_torch._find import is_conv1d
from tnadapt_torch._site import SiteHook

__all__: list[str] = []

FULL_PRECISION = (torch.float32, torch.float64)


class Folded(nn.Module):
    """A weight with the update of one site added while its adapter is active."""

    def __init__(self, hook: SiteHook, *, is_turned: bool) -> None:
        """Args: what serves the site; whether the weight is stored as (in, out)."""
        super().__init__()
        self.hook = hook
        self.is_turned = is_turned

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the module uses."""
        if not self.hook.owner.active:
            return weight
        update = self.hook.delta(weight)
        return weight + (update.T if self.is_turned else update)


def check_foldable(modules: Mapping[str, nn.Module], dropout: float) -> None:
    """Raises SiteError for dropout, for a weight of low precision and for one that is parametrized already."""
    if dropout:
        raise SiteError(f"fold: has no x of its own to drop entries of.\\nHowever, dropout is {dropout}.")
    for path, module in modules.items():
        if parametrize.is_parametrized(module, "weight"):
            raise SiteError(f"{path}: its weight is parametrized already; one update can be folded into it.")
        if module.get_parameter("weight").dtype not in FULL_PRECISION:
            dtype = module.get_parameter("weight").dtype
            raise SiteError(f"{path}: folding needs a float32 or float64 weight; an update would be lost in {dtype}.")


def fold(module: nn.Module, hook: SiteHook) -> None:
    """Have a module use its weight with the update added."""
    parametrize.register_parametrization(module, "weight", Folded(hook, is_turned=is_conv1d(module)), unsafe=True)


def unfold(module: nn.Module) -> None:
    """Give a module its own weight back, the same parameter as before."""
    if parametrize.is_parametrized(module, "weight"):
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
