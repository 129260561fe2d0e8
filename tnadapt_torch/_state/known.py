"""The attached adapters of this process, so that those on a part of a model and those on the whole know each other."""

from collections.abc import Iterable, Mapping
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakSet

from torch import nn

from tnadapt import SiteError
from tnadapt_torch._host import Flags, Merged, Weight

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []

_attached: "WeakSet[AdapterState]" = WeakSet()  # a copy or an unpickled state enters itself

_lock = Lock()  # a save in one thread reads the set while another thread attaches


def enter(state: "AdapterState") -> None:
    """Make a state known to the adapters that come later."""
    with _lock:
        _attached.add(state)


def states_of(model: nn.Module) -> list["AdapterState"]:
    """Return the attached adapters whose host shares a module with a model, in the order in which they were attached.

    The host may be the model, a part of it, a model that it is a part of, or another one with a common part.
    """
    here = {id(module) for module in model.modules()}
    with _lock:
        known = list(_attached)
    found = [state for state in known if state.host and _overlap(here, state.host[0].modules())]
    return sorted(found, key=lambda state: state.turn)


def _overlap(here: set[int], modules: Iterable[nn.Module]) -> bool:
    return any(id(module) in here for module in modules)


def served_by_others(state: "AdapterState") -> list[nn.Module]:
    """Return the modules of the host of a state that other adapters serve."""
    others = [other for other in states_of(state.model) if other is not state]
    return [weight.module for other in others for weight in other.weights.values()]


def leave(state: "AdapterState") -> list[tuple[nn.Module, Flags]]:
    """Take a state off its host; return the other adapted hosts, and their flags.

    What was merged below an update that stays can no longer be unmerged.
    """
    host = state.model
    for name in [name for name, child in host._modules.items() if child is state]:
        del host._modules[name]  # which a container may have renamed, or the user removed
    others = [other for other in states_of(host) if other is not state]
    for other in others:
        if state.merged and other.merged and state.merged.is_over(other.merged):
            other.merged.buried_by = state.name
    return [(other.model, other.flags) for other in others]


def check_latest(state: "AdapterState", merged: Merged) -> None:
    """Raise SiteError if another adapter was merged into the weights of a state after it."""
    where = f"adapter {state.name!r}: expected the latest merge on its weights, got an earlier one"
    later = [other.name for other in states_of(state.model) if other.merged and other.merged.is_over(merged)]
    if later:
        raise SiteError(f"{where}: {later[-1]!r} was merged later.\nUnmerge {later[-1]!r} first.")
    if merged.buried_by:
        raise SiteError(
            f"{where}: {merged.buried_by!r} was merged later and detached.\n"
            f"The update of {merged.buried_by!r} stays, so the earlier weights can no longer be restored."
        )


def check_apart(state: "AdapterState", where: str = "") -> None:
    """Raise SiteError if the update of an adapter is in the weights; `where` begins the message."""
    if state.merged is not None:
        where = where or f"adapter {state.name!r}"
        raise SiteError(
            f"{where}: expected an adapter that is not merged, got a merged one.\n"
            "Its update is in the weights. Call unmerge() first."
        )


def check_unread(state: "AdapterState", others: Iterable["AdapterState"]) -> None:
    """Raise SiteError if a merge would change a weight that is a factor of another adapter, which reads it."""
    for other in others:
        reads = other is not state and other.adapter.hosts and not other.merged
        if reads and (path := _common(state.weights, other.weights)):
            raise SiteError(
                f"{path}: expected a weight that no other adapter reads, got a factor of adapter {other.name!r}.\n"
                f"A merge would change its update. Merge {other.name!r} first, or detach it."
            )


def check_unmerged(state: "AdapterState", weights: Mapping[str, Weight], others: Iterable["AdapterState"]) -> None:
    """Raise SiteError if an adapter would read a weight that contains the update of another one."""
    for other in others if state.adapter.hosts else ():
        if other.merged and (path := _common(weights, other.weights)):
            raise SiteError(
                f"{path}: expected the host's own weight, which is a factor of the adapter, got one with the update of "
                f"adapter {other.name!r}.\nUnmerge {other.name!r} first."
            )


def check_others_unmerged(state: "AdapterState") -> None:
    """Raise SiteError if starting values that are read again would be those of weights with others' updates."""
    for other in states_of(state.host[0]) if state.host else ():
        if other is not state and other.merged and (path := _common(state.weights, other.weights)):
            raise SiteError(
                f"{path}: expected the weight that the starting values of adapter {state.name!r} were read from, since "
                f"its balanced rates depend on them, got one with the update of adapter {other.name!r}.\n"
                f"Unmerge {other.name!r} first. If it was merged before the attach, detach it: its update stays."
            )


def _common(weights: Mapping[str, Weight], others: Mapping[str, Weight]) -> str:
    """Return the path of a weight that both have; "" if there is none."""
    known = {(id(weight.module), weight.name) for weight in others.values()}
    return next((path for path, weight in weights.items() if (id(weight.module), weight.name) in known), "")
