"""What a training run logs of an adapter: a plain dict of numbers, with one transfer from the device."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tnadapt import step_size
from tnadapt.binding import StepSize, unknown_starts
from tnadapt_torch._state.norms import add, by_factor, roots, squares_of, squares_of_updates
from tnadapt_torch._state.step import lora_rate, rates_of

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []

ODD = re.compile(r"[^\w\-./ ]")  # what MLflow does not take in the name of a metric


def log_of(state: "AdapterState", groups: Iterable[Mapping[str, Any]], *, by_group: bool) -> dict[str, float]:
    """Return the numbers of `AdapterState.log`. No name is the beginning of another's path, as trackers want it."""
    adapter, params = state.adapter, state.params()
    updates = squares_of_updates(adapter, params, state.updates)
    values = squares_of(adapter, params)
    slopes = squares_of(adapter, {name: value.grad for name, value in params.items()})
    squares: dict[str, Tensor] = {"norm/dW": add(updates.values())}
    squares |= {f"norm/{name}": square for name, square in by_factor(adapter, values).items()}
    if slopes:
        squares["grad_norm/all"] = add(slopes.values())
        squares |= {f"grad_norm/{name}": square for name, square in by_factor(adapter, slopes).items()}
    for group in adapter.groups if by_group else ():
        squares[f"groups/{group.name}/norm_dW"] = updates[group.name]
        slots = dict.fromkeys(adapter.slot_name(group, name) for name in adapter.spec.arrays)
        if own := [slopes[slot] for slot in slots if slot in slopes]:
            squares[f"groups/{group.name}/grad_norm"] = add(own)
    found = roots(squares) | _sizes(state) | _steps(state, groups)
    return {ODD.sub("_", f"{state.child_name}/{name}"): value for name, value in found.items()}


def _sizes(state: "AdapterState") -> dict[str, float]:
    """Return the mean scale and the mean size of each bond over the groups. Policies change both."""
    networks = [group.network for group in state.adapter.groups]
    found = {"scale": sum(network.scale for network in networks) / len(networks)}
    for bond in state.spec.bonds:
        found[f"rank/{bond}"] = sum(network.sizes[bond] for network in networks) / len(networks)
    return found


def _steps(state: "AdapterState", groups: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return how far a step of Adam goes, against a LoRA: that of the group where it goes furthest.

    Starts that are read from the host have no entry, since reading them takes long.
    """
    if unknown_starts(state.spec):
        return {}
    if state.steps is None or state.steps[0] is not state.adapter:
        sizes: Mapping[str, StepSize] = step_size(state.adapter)
        state.steps = state.adapter, sizes
    _, sizes = state.steps
    found = {"step/of_lora": max(size.of_lora for size in sizes.values())}
    rates = rates_of(groups)
    moved = [lora_rate(state, group, sizes[group.name], rates) for group in state.adapter.groups if rates]
    known = [rate for rate in moved if rate is not None]
    return found | ({"step/lora_rate": max(known)} if known else {})
