"""See through what wraps a module: the names that a compiler or a checkpointing wrapper puts into paths are dropped."""

from collections.abc import Collection
from typing import cast

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tnadapt import SiteError

__all__: list[str] = []

WORDS = ("_orig_mod", "_checkpoint_wrapped_module")  # torch.compile, and activation checkpointing
INNER = {"OptimizedModule": "_orig_mod", "DataParallel": "module"}  # wrappers of a whole model, by the class


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside a compiled or a data-parallel one, so that paths and files are those of the plain model.

    Raises:
        SiteError: the model is in a wrapper that has already collected the parameters to train.
    """
    while (name := INNER.get(type(model).__name__)) and isinstance(getattr(model, name, None), nn.Module):
        model = cast("nn.Module", getattr(model, name))
    sharded = type(model).__name__ == "FullyShardedDataParallel"
    if isinstance(model, DistributedDataParallel) or sharded:
        raise SiteError(
            f"model: expected a model that is not wrapped yet, got {type(model).__name__}, "
            "which collected the parameters to train before this adapter had any.\n"
            "Attach to the plain model, then wrap it" + (" with fully_shard." if sharded else ".")
        )
    return model


def modules_of(model: nn.Module, *, without: Collection[int] = ()) -> dict[str, nn.Module]:
    """Return all modules of a model by path, without the names of wrappers.

    Left out are those of these ids, and what computes a parametrized weight, which is a part of the weight.
    """
    return {
        plain_path(path): module
        for path, module in model.named_modules()
        if id(module) not in without and "parametrizations" not in path.split(".")
    }


def plain_path(path: str) -> str:
    """Return a path without the names of wrappers."""
    return ".".join(word for word in path.split(".") if word not in WORDS)


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """Return the module that a model has at a path now, or None; the path is without the names of wrappers."""
    try:
        found = model.get_submodule(path)
    except AttributeError:
        return None
    while inner := next((found._modules[word] for word in WORDS if word in found._modules), None):
        found = inner
    return found
