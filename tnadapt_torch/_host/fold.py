"""Fold an update into its weight, x (W + dW), by a torch parametrization: faster for full-rank specs at many tokens."""

from collections.abc import Mapping
from typing import cast

import torch
from torch.nn.utils import parametrize

from tnadapt import SiteError
from tnadapt_torch._host.fronts import unshare
from tnadapt_torch._host.weight import Folded, Weight
from tnadapt_torch._run import Hook

__all__: list[str] = []

FULL_PRECISION = (torch.float32, torch.float64)


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
        if weight.is_parametrized:
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
    hook.write_dense()
    parametrize.register_parametrization(weight.module, weight.name, Folded(hook, weight), unsafe=True)


def unfold(weight: Weight, hook: Hook) -> None:
    """Take the update of a hook out of a weight. Alone, it leaves the same parameter object as before it came.

    What the user registered on the weight in the meantime stays.
    """
    if not weight.is_parametrized:
        return
    changes = cast("parametrize.ParametrizationList", weight.module.get_submodule(f"parametrizations.{weight.name}"))
    mine = [number for number, change in enumerate(changes) if isinstance(change, Folded) and change.hook is hook]
    if mine and len(changes) == 1:
        unshare(weight.module)
        parametrize.remove_parametrizations(weight.module, weight.name, leave_parametrized=False)
    elif mine:
        del changes[mine[0]]
