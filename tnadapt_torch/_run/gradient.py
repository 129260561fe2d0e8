"""Check that a layer passes the gradient on to its input, which not every quantized layer does."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch._C import _functorch

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
    such layers do not say so. Inside a transform of torch.func, x may require a gradient on several levels. A compiled
    call sees less of the graph: it notices only an output without a gradient, and under vmap nothing.
    """
    if not torch.is_grad_enabled():
        return
    if torch.compiler.is_compiling():
        if output.requires_grad or not x.requires_grad or _functorch.is_batchedtensor(output):
            return
    elif not (wanted := [level for level in _levels(x) if level.requires_grad]):
        return
    elif all(_reaches(list(_levels(output)), level) for level in wanted):
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


def is_transformed() -> bool:
    """Return whether a transform of torch.func may run, such as vmap, whose wrappers hide flags. Compiled: always."""
    return _functorch.peek_interpreter_stack() is not None


def _levels(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor and those that transforms wrapped, from the outside: each may belong to a graph of its own."""
    yield tensor
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
        yield tensor


def _reaches(made: list[Tensor], x: Tensor) -> bool:
    """Return whether a graph that made the output leads to x. The walk ends at x, so it stays inside the layer."""
    waiting, seen = [level.grad_fn for level in made], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or node.name().endswith(DEAD_END):
            continue
        if node is x.grad_fn or getattr(node, "variable", None) is x:
            return True
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
    return False
