"""The first step of an attached adapter: the starting values that its size depends on, and a note if it is large."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from tnadapt import step_size
from tnadapt.binding import START, Group, StepSize, start_values, unknown_starts
from tnadapt_torch._host import HostEntries, HostWeights
from tnadapt_torch._state.factors import to_numpy
from tnadapt_torch._state.known import check_others_unmerged
from tnadapt_torch._state.store import originals_of, parts_of

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []

LARGE = 8  # times LoRA's step


def start_values_of(state: "AdapterState") -> Mapping[str, npt.ArrayLike] | None:
    """Return the starting values that `step_size` needs, or None if it needs none.

    They are those of the attach whatever was trained since, so that a run that is resumed has the same rates. Frozen
    ones, and those that the update subtracts, are in the state; others are read from the host's weights once more.
    Raises SiteError if these have the updates of other adapters.
    """
    adapter, names = state.adapter, unknown_starts(state.spec)
    if not names:
        return None
    read = [name for name in adapter.slots if name.removesuffix(START).rpartition(".")[2] in names]
    is_lost = any(adapter.slots[name].factor.trainable and name + START not in adapter.slots for name in read)
    if is_lost or adapter.hosts:
        check_others_unmerged(state)
    originals = originals_of(state)
    values: dict[str, Any] = (
        dict(start_values(adapter, HostWeights(state.weights, originals)))
        if is_lost
        else {name: to_numpy(value) for name, value in state.params().items() if name in read}
    )
    return HostEntries(adapter, state.weights, values | parts_of(state), originals)


def note_of_step(state: "AdapterState", groups: Iterable[Mapping[str, Any]] = ()) -> str:
    """Return a note on a first step of Adam that is more than 8 times LoRA's, once; else "".

    Both are at the same learning rate. Nothing is said where it depends on values that are read from the host, since
    reading them takes long.

    Args:
        state: the adapter's state.
        groups: the parameter groups of the optimizer, if they are known: the note then gives LoRA's rate for this step.
    """
    if state.is_step_told or unknown_starts(state.spec):
        return ""
    name, size = max(step_size(state.adapter).items(), key=lambda item: item[1].of_lora)
    if size.of_lora <= LARGE:
        return ""
    state.is_step_told = True
    (group,) = (one for one in state.adapter.groups if one.name == name)
    rate = lora_rate(state, group, size, rates_of(groups, "initial_lr"))
    here = "" if rate is None else f" At the rates of this optimizer it moves as LoRA does at a rate of {rate:.2g}."
    return (
        f"adapter {state.name!r}: the first step of Adam moves {state.spec.name} {size.of_lora:.3g} times as far as a "
        f"LoRA of rank 8 and alpha 8 at the same learning rate.{here}\n"
        f"If that is not what you want, attach with scale=unit(), or divide the rate of a LoRA by {size.of_lora:.2g}."
    )


def rates_of(groups: Iterable[Mapping[str, Any]], word: str = "lr") -> dict[int, float]:
    """Return the rate of each parameter of an optimizer by its id: this entry of its group, or "lr" without one."""
    return {id(one): each.get(word, each["lr"]) for each in groups for one in each["params"]}


def lora_rate(state: "AdapterState", group: Group, size: StepSize, rates: Mapping[int, float]) -> float | None:
    """Return the rate at which a LoRA of rank 8 and alpha 8 would move as far as a group of the adapter does.

    `size` is the group's first step at a rate of 1. If a factor that moves has no rate, the result is None.
    """
    params = state.params()
    moved = [rates.get(id(params[state.adapter.slot_name(group, factor)])) for factor in size.parts]
    if not moved or None in moved:
        return None
    lengths = [rate * part for rate, part in zip(moved, size.parts.values(), strict=True)]  # type: ignore[operator]
    return float(size.of_lora * math.hypot(*lengths) / math.hypot(*size.parts.values()))
