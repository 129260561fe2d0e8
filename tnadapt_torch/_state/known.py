"""The attached adapters of this process, so that those on a part of a model and those on the whole know each other."""

from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakSet

from torch import nn

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []

_attached: "WeakSet[AdapterState]" = WeakSet()  # a copy or an unpickled state enters itself


def enter(state: "AdapterState") -> None:
    """Make a state known to the adapters that come later."""
    _attached.add(state)


def states_of(model: nn.Module) -> list["AdapterState"]:
    """Return the attached adapters whose host shares a module with a model, in the order in which they were attached.

    The host may be the model, a part of it, a model that it is a part of, or another one with a common part.
    """
    here = {id(module) for module in model.modules()}
    found = [state for state in _attached if state.host and _overlap(here, state.host[0].modules())]
    return sorted(found, key=lambda state: state.turn)


def _overlap(here: set[int], modules: Iterable[nn.Module]) -> bool:
    return any(id(module) in here for module in modules)
