"""Give an attached adapter other values and another seed, in place: its parameters stay the same objects."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tnadapt import Adapter
from tnadapt.binding import drawn_starts
from tnadapt_torch._sharded import laid_like, whole
from tnadapt_torch._state.factors import leaf_of

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []


def copy_values(state: "AdapterState") -> dict[str, Tensor]:
    """Return whole copies of all factors on the CPU, by their names in the core."""
    return {name: whole(value.detach()).to("cpu", copy=True) for name, value in state.params().items()}


def set_values(state: "AdapterState", adapter: Adapter, params: Mapping[str, Tensor]) -> None:
    """Copy values into all factors, and draw again the starting values that the update of this adapter uses.

    The adapter must be that of the state up to its seed, and `params` must have its names and shapes.
    """
    starts = {name: torch.from_numpy(value) for name, value in drawn_starts(adapter).items()}
    with torch.no_grad():
        for tree, values in ((state.factors, {name: params[name] for name in adapter.slots}), (state.start, starts)):
            for name, value in values.items():
                held: Tensor = getattr(*leaf_of(tree, name))
                held.copy_(laid_like(value.to(held.device, held.dtype), held))
    state.adapter = adapter
