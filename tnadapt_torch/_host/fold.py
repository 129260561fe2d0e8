"""Fold an update into its weight, x (W + dW), by a torch parametrization: faster for full-rank specs at many tokens."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from tnadapt import SiteError
from tnadapt_torch._host.fronts import unshare
from tnadapt_torch._host.parallel import managed
from tnadapt_torch._host.saved import is_offloaded
from tnadapt_torch._host.weight import Folded, Weight
from tnadapt_torch._run import Update

__all__: list[str] = []

FULL_PRECISION = (torch.float32, torch.float64)


def check_foldable(weights: Mapping[str, Weight], dropout: float) -> None:
    """Raise SiteError for dropout, and for a weight of low precision, already parametrized, or held by fully_shard."""
    if dropout:
        raise SiteError(
            f"fold: expected dropout=0, got dropout={dropout}.\n"
            "A folded update has no input of its own to apply dropout to. Leave out dropout."
        )
    for path in managed(weights):
        raise SiteError(
            f"{path}: expected a weight to fold an update into before fully_shard took it over, got one after that.\n"
            "Attach or load the adapter first, then call fully_shard. Or attach it without fold."
        )
    for path, weight in weights.items():
        if storage := weight.storage:
            raise SiteError(
                f"{path}: expected a plain float32 or float64 weight to fold an update into, got {storage}.\n"
                "The update would be lost to the rounding of a quantized weight. Attach without folding, or to the "
                "model without quantization."
            )
        if weight.tensor.is_meta and is_offloaded(weight.module):
            raise SiteError(
                f"{path}: expected a weight with values to fold an update into, got one that is offloaded.\n"
                "Attach or load the adapter before the model is offloaded, or without fold."
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


def check_unfoldable(weights: Mapping[str, Weight]) -> None:
    """Raise SiteError for a weight that fully_shard took over after an update was folded into it."""
    for path in managed(weights):
        raise SiteError(
            f"{path}: expected a weight to take an update out of, got one that fully_shard holds where it was folded.\n"
            "Save the adapter, and load it onto the model before it is sharded."
        )
    for path, weight in weights.items():
        if weight.tensor.is_meta and is_offloaded(weight.module):
            raise SiteError(
                f"{path}: expected a weight to take an update out of, got one that is offloaded.\n"
                "Bring the model back first, with accelerate.hooks.remove_hook_from_submodules(model)."
            )


def check_folded(weights: Mapping[str, Weight], updates: Mapping[str, Update]) -> None:
    """Raise SiteError for a weight that an update was folded into, but is no longer."""
    for path, weight in weights.items():
        if _place(weight, updates[path]) is None:
            raise SiteError(
                f"{path}: expected the update to be folded into the weight, as attach left it, got a weight without.\n"
                "Its parametrization was removed, and may have left the update in the weight. Detach the adapter, and "
                "save it and load it onto the base model."
            )


def fold_in(weight: Weight, update: Update) -> None:
    """Parametrize the weight of a module so that the module uses it with the update added."""
    update.write_dense()
    is_first = not parametrize.is_parametrized(weight.module)
    order = tuple(weight.module._parameters)
    parametrize.register_parametrization(weight.module, weight.name, Folded(update, weight, order), unsafe=True)
    cls = type(weight.module)
    if is_first and "__deepcopy__" in vars(cls):
        cls.__deepcopy__ = _without_compiled_code(vars(cls)["__deepcopy__"])  # type: ignore[attr-defined]


def _without_compiled_code(copy: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Let the deep copy of torch's parametrized class drop compiled code, as that of every other module does.

    The code is that of the original: a copy that keeps it computes with the weights of the original.
    """

    def deepcopy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
        made = copy(module, memo)
        vars(made).pop("_compiled_call_impl", None)
        return made

    return deepcopy


def unfold(weight: Weight, update: Update) -> None:
    """Take the update out of a weight. Alone, it leaves the same parameter object as before it came, in its place.

    What the user registered on the weight in the meantime stays.
    """
    place = _place(weight, update)
    if place is None:
        return
    changes = _changes(weight)
    if len(changes) > 1:
        del changes[place]
        return
    order = cast("Folded", changes[place]).order
    unshare(weight.module)
    parametrize.remove_parametrizations(weight.module, weight.name, leave_parametrized=False)
    stored = weight.module._parameters
    for name in [*(name for name in order if name in stored), *(name for name in stored if name not in order)]:
        stored[name] = stored.pop(name)  # an optimizer tells parameters by their order


def _place(weight: Weight, update: Update) -> int | None:
    """Return the place of an update among what computes a weight, or None."""
    changes = _changes(weight) if weight.is_parametrized else ()
    mine = (number for number, change in enumerate(changes) if isinstance(change, Folded) and change.update is update)
    return next(mine, None)


def _changes(weight: Weight) -> parametrize.ParametrizationList:
    return cast("parametrize.ParametrizationList", weight.module.get_submodule(f"parametrizations.{weight.name}"))
