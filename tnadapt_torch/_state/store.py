"""Write an adapter: its own file, or a LoRA that PEFT can load. The first of the processes that share it writes."""

import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

import tnadapt
from tnadapt import SiteError
from tnadapt.binding import HOST_PARTS, HOST_WEIGHTS, Written, drawn_starts
from tnadapt_torch._host import HostEntries, HostWeights, SavedModules, check_parts, find_tie
from tnadapt_torch._sharded import once
from tnadapt_torch._state.factors import leaf_of, stored_factors, to_numpy
from tnadapt_torch._state.replicas import settle, shared_by
from tnadapt_torch._state.task import find_task

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []


def write_file(state: "AdapterState", path: str | os.PathLike[str], given: Mapping[str, Tensor] | None = None) -> None:
    """Write the file of `AdapterState.save`, with given values in place of those with the same key."""
    if state.host:  # a detached adapter can be saved, too
        state.check_host()
    settle(state)
    params, saved = state.params(), state.saved.values()
    for held in (params, saved):
        held |= {key: value for key, value in (given or {}).items() if key in held}
    extra = {key: to_numpy(value) for key, value in saved.items()}
    starts = {key: getattr(*leaf_of(state.start, key)) for key in drawn_starts(state.adapter)}
    stored = stored_factors(state.adapter, params | starts)
    check_parts(state.adapter, HostWeights(state.weights, originals_of(state)), parts_of(state))
    once(shared_by(state), partial(tnadapt.save, state.adapter, _with_hosts(state, stored), path, extra=extra))


def write_lora(
    state: "AdapterState", directory: str | os.PathLike[str], rank: int | None, task_type: str | None
) -> dict[str, Written]:
    """Write the folder of `AdapterState.save_as_lora`. Raise SiteError, with nothing written, where that says so."""
    state.check_host()
    if named := [path for path, weight in state.weights.items() if not weight.is_module]:
        raise SiteError(
            f"save_as_lora: expected the weights of linear layers, got the parameter {named[0]}.\n"
            "A LoRA folder names modules. Save the adapter with state.save(path)."
        )
    settle(state)
    saved = state.saved.values()
    if pair := find_tie(state.model, saved):
        raise SiteError(
            f"modules_to_save: expected {pair[0]} to be a separate parameter, "
            f"got a model in which {pair[1]} is the same parameter.\n"
            f"PEFT loads {pair[0]} into a copy, but {pair[1]} was trained with it. Nothing was written."
        )
    task, heads = find_task(state.model, task_type, state.weights, state.saved.modules)
    saved |= SavedModules(heads).values()
    write = partial(
        tnadapt.save_as_lora,
        state.adapter,
        _with_hosts(state, {key: to_numpy(value) for key, value in state.params().items()} | parts_of(state)),
        directory,
        rank=rank,
        base_model=getattr(getattr(state.model, "config", None), "name_or_path", None) or None,
        task_type=task,
        fan_in_fan_out=any(weight.layout == ("in", "out") for weight in state.weights.values()),
        extra={key: to_numpy(value) for key, value in saved.items()},
        modules_to_save=[*state.saved.modules, *heads],
    )
    return once(shared_by(state), write)


def parts_of(state: "AdapterState") -> dict[str, npt.NDArray[np.generic]]:
    """Return the parts of the SVDs of the host's weights that the adapter computes with: those of its attach."""
    names = [name for name, (_, kind) in state.adapter.hosts.items() if kind in HOST_PARTS]
    return {name: to_numpy(getattr(*leaf_of(state.start, name))) for name in names}


def originals_of(state: "AdapterState") -> Mapping[str, Tensor]:
    """Return the values of the weights from before the adapter's own merge; under PEFT, from before any merge."""
    return state.merged.originals if state.merged else state.originals


def _with_hosts(state: "AdapterState", params: Mapping[str, npt.ArrayLike]) -> Mapping[str, npt.ArrayLike]:
    """Return params with the host's weights, without the adapter's own update if that is merged.

    Processes that share the host read the weights here, since each has a part and one alone writes.
    """
    entries = HostEntries(state.adapter, state.weights, params, originals_of(state))
    if shared_by(state) is None:
        return entries
    return {
        **params,
        **{name: entries[name] for name, (_, kind) in state.adapter.hosts.items() if kind in HOST_WEIGHTS},
    }
