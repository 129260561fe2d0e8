"""The tree of modules that holds factors: a name in params with dots is a path through it."""

import torch
from torch import Tensor, nn

from tnadapt import Adapter, SiteError
from tnadapt.binding import redraw

__all__: list[str] = []

START = ":start"  # ends the core's name of a start that cannot be drawn again


class Factors(nn.Module):
    """A node of the tree."""


def starts_of(adapter: Adapter) -> dict[str, Tensor]:
    """The starting values that a centered update needs and that the seed gives again, in float64."""
    if not adapter.spec.centered:
        return {}
    drawn = redraw(adapter)
    return {
        key: torch.from_numpy(drawn[key])
        for key, slot in adapter.slots.items()
        if slot.factor.trainable and key in drawn
    }


def leaf_of(tree: nn.Module, key: str) -> tuple[nn.Module, str]:
    *path, leaf = key.split(".")
    return tree.get_submodule(".".join(path)), leaf


def plant(tree: nn.Module, key: str, value: Tensor, *, trainable: bool, persistent: bool = True) -> None:
    """Register a factor in a tree. Raises SiteError for a name that an nn.Module cannot hold, as "half" or "train"."""
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
            f"factor {key!r}: a torch module cannot hold this name ({error}).\nRename the factor."
        ) from None
