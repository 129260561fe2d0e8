"""Check that a layer passes the gradient on to its input, which not every quantized layer does."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from tnadapt import SiteError

__all__: list[str] = []

DEAD_END = "NotImplemented"  # ends the names of nodes without a derivative: the backward pass raises there, or warns


class Watched(Protocol):
    """The attributes of a update that this check reads and sets."""

    @property
    def owner(self) -> "Known":
        """The adapter."""
        ...

    unproven: bool


class Known(Protocol):
    """The attribute of an adapter that tells the path of a update."""

    @property
    def updates(self) -> Mapping[str, object]:
        """The updates by path."""
        ...


def check_gradient(update: Watched, x: Tensor, output: Tensor) -> None:
    """Raise SiteError if the gradient of a layer's output does not reach its input; remember that it does.

    Autograd would then train the adapters of earlier layers without the terms that flow through this layer, and most
    such layers do not say so. A compiled call sees less of the graph: it notices only an output without a gradient.
    """
    if not torch.is_grad_enabled():
        return
    if torch.compiler.is_compiling():
        if output.requires_grad:
            return
    elif _reaches(output, x):
        update.unproven = False
        return
    raise SiteError(
        f"{path_of(update)}: expected a layer that passes the gradient on to its input, got one that does not.\n"
        "The adapters of earlier layers would be trained wrong. Quantize weights but not activations, or train on the "
        "model without quantization and load the file onto this one. Without training, use torch.no_grad()."
    )


def path_of(update: Watched) -> str:
    """Return the path of the weight or the site that an update belongs to."""
    return next(path for path, other in update.owner.updates.items() if other is update)


def _reaches(output: Tensor, x: Tensor) -> bool:
    """Return whether the graph that made the output leads to x. The walk ends at x, so it stays inside the layer."""
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or node.name().endswith(DEAD_END):
            continue
        if node is x.grad_fn or getattr(node, "variable", None) is x:
            return True
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
    return False
