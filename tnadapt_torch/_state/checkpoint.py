"""The checkpoints of a training run that hold what is trained alone, and which folders they are."""

import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tnadapt_torch._host import is_packed_linear

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # what the Trainer looks for in a checkpoint; what makes a model
EXTRA = "_extra_state"  # the end of the key of what a module stores beside its tensors


class Progress(Protocol):
    """What counts the steps of a run, as the TrainerState of transformers does."""

    global_step: int


class Run:
    """A training run whose checkpoints hold what is trained alone, unless they are uploaded, and the adapter's file.

    It has the checkpoint of the present step only, and none once nobody else refers to what counts its steps: a run
    that was interrupted is never told to end.
    """

    def __init__(self, folder: Path, progress: Progress, *, is_uploaded: bool = False) -> None:
        """Store the folder that holds the checkpoints, and refer to what counts the steps."""
        self.folder, self.progress, self.is_uploaded = folder.resolve(), weakref.ref(progress), is_uploaded

    def has(self, directory: Path) -> bool:
        """Return whether a folder is the checkpoint of the present step."""
        progress = self.progress()
        if progress is None or directory.name != f"checkpoint-{progress.global_step}":
            return False
        return directory.resolve().is_relative_to(self.folder)


def write_trained(
    module: nn.Module, directory: Path, states: "Collection[AdapterState]", given: Mapping[str, Tensor] | None
) -> None:
    """Write the factors, and all else that changes in training, under their keys in the state dict of a model.

    That is what has gradients and every buffer, since a module may change its own in a forward pass. The packed weights
    of quantized layers stay out. There is no config.json, so that AutoModel refuses the folder.
    """
    held = module.state_dict(keep_vars=True)
    wanted = {id(value) for value in held.values() if isinstance(value, nn.Parameter) and value.requires_grad}
    for each in module.modules():
        wanted |= {id(buffer) for buffer in each._buffers.values()} if not is_packed_linear(each) else set()
    for part in (*states, *(saved for state in states for saved in state.saved.modules.values())):
        wanted |= {id(value) for value in part.state_dict(keep_vars=True).values()}
    values = held if given is None else given
    chosen = {
        key: values[key].detach().clone(memory_format=torch.contiguous_format)  # tied ones would share a storage
        for key, value in held.items()
        if isinstance(values.get(key), Tensor) and (id(value) in wanted or key.endswith(EXTRA))
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(chosen, directory / WEIGHTS, metadata={"format": "pt"})
