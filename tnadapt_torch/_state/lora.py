"""Write an adapter and its modules_to_save as a LoRA in a folder that PEFT can load."""

import os
from typing import TYPE_CHECKING

import tnadapt
from tnadapt import SiteError
from tnadapt.binding import Written
from tnadapt_torch._host import SavedModules, find_tie
from tnadapt_torch._state.factors import to_numpy
from tnadapt_torch._state.task import find_task

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []


def save_as_lora(
    state: "AdapterState", directory: str | os.PathLike[str], rank: int | None, task_type: str | None
) -> dict[str, Written]:
    """Write the folder of `AdapterState.save_as_lora`. Raise SiteError, with nothing written, where that says so."""
    state.check_host()
    saved = state.saved.values()
    if pair := find_tie(state.model, saved):
        raise SiteError(
            f"modules_to_save: expected {pair[0]} to be a separate parameter, "
            f"got a model in which {pair[1]} is the same parameter.\n"
            f"PEFT loads {pair[0]} into a copy, but {pair[1]} was trained with it. Nothing was written."
        )
    task, heads = find_task(state.model, task_type, state.weights, state.saved.modules)
    saved |= SavedModules(heads).values()
    return tnadapt.save_as_lora(
        state.adapter,
        {key: to_numpy(value) for key, value in state.params().items()},
        directory,
        rank=rank,
        base_model=getattr(getattr(state.model, "config", None), "name_or_path", None) or None,
        task_type=task,
        fan_in_fan_out=any(weight.layout == ("in", "out") for weight in state.weights.values()),
        extra={key: to_numpy(value) for key, value in saved.items()},
        modules_to_save=[*state.saved.modules, *heads],
    )
