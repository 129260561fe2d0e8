"""What an update reads from a call of its layer: the input and the output."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from tnadapt import SiteError
from tnadapt_torch._run.bundle import Rows
from tnadapt_torch._run.fixed import Fixed
from tnadapt_torch._run.gradient import Watched, check_gradient, is_transformed, path_of

__all__: list[str] = []

NAMES = ("input", "x")  # of the input: in nn.Linear, in Conv1D of transformers


class Owner(Protocol):
    """The attributes of an adapter that a site reads at each call."""

    dropout: float
    training: bool
    products: Fixed | None  # of factors alone, while the factors stay as they are
    joint: Rows | None  # the same with gradients, for all sites

    @property
    def active(self) -> bool:
        """Whether updates are added."""
        ...

    @property
    def task(self) -> str:
        """The task whose sites are used; "" if the adapter has no tasks."""
        ...

    @property
    def updates(self) -> Mapping[str, object]:
        """The updates of all sites and weights, by path."""
        ...


class Seeing(Watched, Protocol):
    """The attributes of an update that reads the input of its layer."""

    owner: Owner
    width: int


def see_x(update: Seeing, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
    """Return the input of the adapter: x after dropout, in the dtype of the output.

    Raise SiteError if x cannot be told from other arguments or requires a gradient that the layer does not pass on, and
    for an output that is not one tensor.
    """
    x = find_x(args, kwargs, update.width)
    if not isinstance(output, Tensor):
        raise SiteError(
            f"{path_of(update)}: expected a layer that returns a tensor, got one that returns a "
            f"{type(output).__name__}.\nRemove it from target_modules, or attach with fold=True."
        )
    if (x.requires_grad or is_transformed()) and (update.unproven or not output.requires_grad):
        check_gradient(update, x, output)
    if is_dropping(update.owner):
        x = torch.nn.functional.dropout(x, update.owner.dropout)
    return x if x.dtype == output.dtype else x.to(output.dtype)


def is_dropping(owner: Owner) -> bool:
    """Return whether the input of the adapter goes through dropout."""
    return bool(owner.dropout) and owner.training


def find_x(args: tuple[Any, ...], kwargs: Mapping[str, Any], width: int) -> Tensor:
    """Return the input of a layer among the arguments of a call; its last axis has this length.

    It is the first argument, or the one that is named so, or the only one that fits. Raise SiteError if several fit, or
    none.
    """
    if args and isinstance(args[0], Tensor):
        return args[0]
    for name in NAMES:
        if isinstance(x := kwargs.get(name), Tensor):
            return x
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    found = [value for value in given if value.ndim and value.shape[-1] == width]
    if len(found) != 1:
        raise SiteError(
            f"x: expected one argument of the layer with {width} numbers along its last axis, got {len(found)}.\n"
            f"Pass the input as the first argument, or by the name {NAMES[0]!r}."
        )
    return found[0]
