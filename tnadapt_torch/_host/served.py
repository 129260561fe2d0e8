"""Serve a module: its forward, then the updates of the adapters on it."""

from dataclasses import dataclass
from types import MethodType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from tnadapt_torch._host.fronts import Front, drop_front, put_front
from tnadapt_torch._host.weight import Weight
from tnadapt_torch._run import Siblings, SiteUpdate, Update, forget_reading, join_layer

__all__: list[str] = []

PLACE = (
    "_tnadapt"  # a module's updates: a tuple in its __dict__, a new one at each change, since the compiler guards it
)


class Removable(Protocol):
    """What an attach leaves on the host."""

    def remove(self) -> None:
        """Take it off."""
        ...


class Served(Front):
    """The front of a module with updates."""

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        forget_reading()  # a conversion that swaps parameters needs them to be held by none
        return super()._apply(*args, **kwargs)  # type: ignore[misc]  # the class behind has it

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the module with all updates added."""
        if not isinstance(self, Served):  # detached; a closure still holds the method of before
            return type(self).forward(self, *args, **kwargs)
        module = cast("nn.Module", self)
        updates = updates_of(module)
        if len(updates) == 1 and updates[0].may_fold:
            inside = updates[0].call_inside(module, args, kwargs)
            if inside is not None:
                return inside
        if len(updates) == 1 and not torch.compiler.is_compiling():
            layer = updates[0].layer
            at_once = None if layer is None else layer.call(module, args, kwargs)
            if at_once is not None:
                return at_once
        base: Tensor = super().forward(*args, **kwargs)  # type: ignore[misc]  # the class behind has it
        output = base
        for update in updates:
            output = update(module, args, kwargs, output, base)
        return output


@dataclass(frozen=True)
class Service:
    """One update on one module, until it is removed."""

    module: nn.Module
    update: Update

    def remove(self) -> None:
        """Remove the update, and the front with the last one. Where a wrapper forbids that, an idle front stays."""
        left = tuple(update for update in updates_of(self.module) if update is not self.update)
        if left:
            vars(self.module)[PLACE] = left
        elif PLACE in vars(self.module):
            del vars(self.module)[PLACE]
            drop_front(self.module, Served)


def serve(weight: Weight, update: Update, families: dict[tuple[str, int], Siblings]) -> Removable:
    """Add an update to the outputs of the module of a weight, until what is returned is removed.

    `families` has the layers by parent and width that may read the same x.

    The class of the module is exchanged. A forward hook serves a module whose class forbids subclasses, or whose own
    `forward` does not lead to that of its class. Code that was compiled before the attach does not see such a hook.
    """
    module = weight.module
    update.unproven = bool(weight.storage)
    update.reads_product &= weight.is_product
    if weight.is_plain_linear:
        update.allow_folding()
    if not isinstance(module, Served):
        try:
            if not _is_reached(module):
                raise TypeError(f"{type(module).__name__}.forward is not called")
            put_front(module, Served)
        except Exception:  # whatever a class raises that forbids subclasses
            return module.register_forward_hook(update, prepend=True, with_kwargs=True)  # before those of the user
    if weight.is_plain_linear and isinstance(update, SiteUpdate):
        join_layer(update, weight.path, families)
    vars(module)[PLACE] = (*updates_of(module), update)
    return Service(module, update)


def updates_of(module: nn.Module) -> tuple[Update, ...]:
    """Return the updates that serve a module, in the order in which they are added."""
    found: tuple[Update, ...] = vars(module).get(PLACE, ())
    return found


def _is_reached(module: nn.Module) -> bool:
    """Return whether a call gets to the forward of the module's class.

    accelerate gives a module a `forward` of its own, which calls the method that it keeps beside it.
    """
    kept = [value for value in vars(module).values() if isinstance(value, MethodType) and value.__self__ is module]
    return "forward" not in vars(module) or any(value.__func__ is type(module).forward for value in kept)
