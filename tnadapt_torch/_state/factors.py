"""The tree of modules that holds the factors; the dots in a factor's name separate the modules on its path."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tnadapt import Adapter, SiteError
from tnadapt.binding import params_to_store
from tnadapt_torch._sharded import whole

__all__: list[str] = []


class Factors(nn.Module):
    """A node of the tree."""


def leaf_of(tree: nn.Module, key: str) -> tuple[nn.Module, str]:
    """Find the module that holds a factor, and the name of the factor in that module."""
    *path, leaf = key.split(".")
    return tree.get_submodule(".".join(path)), leaf


def plant(tree: nn.Module, key: str, value: Tensor, *, trainable: bool, persistent: bool = True) -> None:
    """Register a factor in a tree. Raise SiteError for a name that an nn.Module cannot hold, such as "half"."""
    *path, leaf = key.split(".")
    try:
        for name in path:
            if name not in tree._modules:
                tree.add_module(name, Factors())
            tree = tree.get_submodule(name)
        if trainable:
            tree.register_parameter(leaf, nn.Parameter(value))
        else:
            tree.register_buffer(leaf, value, persistent=persistent)
    except (AttributeError, KeyError) as error:
        raise SiteError(
            f"factor: expected a name that a torch module can hold, got {key!r} ({error}).\nRename the factor."
        ) from None


def keep_values(convert: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a conversion of tensors; that of `nn.Module.to_empty` with the values kept.

    A host that was made on the meta device is emptied before its weights are loaded. Nothing would load the factors.
    """
    if getattr(convert, "__qualname__", "") != "Module.to_empty.<locals>.<lambda>":
        return convert

    def keep(tensor: Tensor) -> Tensor:
        made = convert(tensor)
        return made if tensor.is_meta else made.copy_(tensor)

    return keep


def stored_factors(adapter: Adapter, params: Mapping[str, Tensor]) -> dict[str, npt.ArrayLike]:
    """Select the factors that a file must hold, as arrays. bfloat16 becomes float32."""
    dtypes = {name: str(value.dtype).removeprefix("torch.") for name, value in params.items()}
    return params_to_store(adapter, {name: to_numpy(value) for name, value in params.items()}, dtypes)


def to_numpy(tensor: Tensor) -> npt.NDArray[np.generic]:
    """Copy a tensor, with the parts of all processes, to an array. bfloat16 becomes float32.

    A storage that an array shares can no longer be freed, as FullyShardedDataParallel frees what it gathered.
    """
    full = whole(tensor.detach())
    dtype = torch.float32 if full.dtype == torch.bfloat16 else full.dtype
    return full.to("cpu", dtype, copy=True).numpy()
