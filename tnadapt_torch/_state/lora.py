"""Write an adapter and its modules_to_save as a LoRA in a folder that PEFT can load."""

import os
from typing import TYPE_CHECKING

import tnadapt
from tnadapt import SiteError
from tnadapt.binding import Written
from tnadapt_torch._host import find_tie
from tnadapt_torch._state.factors import to_numpy

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []


def save_as_lora(state: "AdapterState", directory: str | os.PathLike[str], rank: int | None) -> dict[str, Written]:
    """Write the folder of `AdapterState.save_as_lora`. Raise SiteError, with nothing written, where that says so."""
    state.check_host()
    if named := [path for path, weight in state.weights.items() if not weight.is_module]:
        raise SiteError(
            f"save_as_lora: expected the weights of linear layers, got the parameter {named[0]}.\n"
            "A LoRA folder names modules. Save the adapter with state.save(path)."
        )
    extra = {key: to_numpy(value) for key, value in state.saved.values().items()}
    if pair := find_tie(state.model, extra):
        raise SiteError(
            f"modules_to_save: expected {pair[0]} to be a separate parameter, "
            f"got a model in which {pair[1]} is the same parameter.\n"
            f"PEFT loads {pair[0]} into a copy, but {pair[1]} was trained with it. Nothing was written."
        )
    return tnadapt.save_as_lora(
        state.adapter,
        {key: to_numpy(value) for key, value in state.params().items()},
        directory,
        rank=rank,
        base_model=getattr(getattr(state.model, "config", None), "name_or_path", None) or None,
        fan_in_fan_out=any(weight.layout == ("in", "out") for weight in state.weights.values()),
        extra=extra,
        modules_to_save=list(state.saved.modules),
    )
