"""The tree of modules that holds the factors; the dots in a factor's name separate the modules on its path."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tnadapt import Adapter, SiteError
from tnadapt.binding import START, drawn_starts, params_to_store
from tnadapt_torch._sharded import whole

__all__: list[str] = []

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # in which factors are trained


class Factors(nn.Module):
    """A node of the tree."""


def leaf_of(tree: nn.Module, key: str) -> tuple[nn.Module, str]:
    """Find the module that holds a factor, and the name of the factor in that module."""
    *path, leaf = key.split(".")
    return tree.get_submodule(".".join(path)), leaf


def plant(tree: nn.Module, key: str, value: Tensor, *, trainable: bool, persistent: bool = True) -> None:
    """Register a factor in a tree. Raise SiteError for a name that an nn.Module cannot hold, such as "half"."""
    *path, leaf = key.split(".")
    if value.is_inference():
        with torch.inference_mode(False):  # so that it can be trained after the mode that it was made in
            value = value.clone()
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


def spare(convert: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a conversion of tensors as factors take it.

    A host that was made on the meta device is emptied before its weights are loaded (`nn.Module.to_empty`). Nothing
    would load the factors, so they keep their values. They also keep their dtype if a host is stored in a type such as
    float8, in which nothing can be trained.
    """
    is_emptying = getattr(convert, "__qualname__", "") == "Module.to_empty.<locals>.<lambda>"

    def convert_factor(tensor: Tensor) -> Tensor:
        made = convert(tensor)
        if is_emptying and not tensor.is_meta:
            return made.copy_(tensor)
        return made if made.dtype in DTYPES or made.dtype == tensor.dtype else tensor.to(made.device)

    return convert_factor


@contextmanager
def wide_magnitudes(adapter: Adapter, tree: nn.Module) -> Iterator[None]:
    """Keep magnitudes in float32 or better in a `with` block that casts the factors.

    Rounded to fewer bits, they would scale all rows of the host's weight by up to a percent.
    """
    keys = [key for key, slot in adapter.slots.items() if slot.factor.init.is_magnitude]
    before = {key: getattr(*leaf_of(tree, key)).data for key in keys}
    yield
    for key, value in before.items():
        held = getattr(*leaf_of(tree, key))
        if held.dtype.itemsize < torch.float32.itemsize < 2 * value.dtype.itemsize:
            held.data = value.to(held.device)


def start_of(adapter: Adapter, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what no file has: redrawn starting values, and parts of the SVDs of the host's weights."""
    drawn = {name: torch.from_numpy(value) for name, value in drawn_starts(adapter).items()}
    drawn = {name: value.to(params[name.removesuffix(START)]) for name, value in drawn.items()}
    return drawn | {name: params[name] for name in adapter.hosts if name in params}


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
