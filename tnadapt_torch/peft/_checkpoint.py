"""The folder that PEFT saves: the keys of its tensors, the checks of both files, and what a file does not store."""

from collections.abc import Mapping
from pathlib import Path

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tnadapt import Adapter, AdapterSpec, FormatError
from tnadapt.binding import redraw

__all__: list[str] = []

STATES = "tnadapt_states"  # the attribute in which the tuner holds the states of its adapters
STEM = f"base_model.{STATES}."  # the prefix of a factor's key in adapter_model.safetensors
SEED = "base_model.tnadapt_seed"  # the key of the seed, if some values are drawn from it and not stored
LARGEST_SEED = 2**63 - 1  # as a tensor


def check_folder(folder: Path, adapter: AdapterSpec | Adapter) -> None:
    """Check the header of the file of factors, if the file exists (a hub may not have sent it yet).

    Raises:
        FormatError: the file is pickled or truncated, or does not have the factors of the adapter.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.exists():
        if (pickled := folder / WEIGHTS_NAME).exists():
            raise FormatError(
                f"{pickled}: expected a safetensors file, got a pickle, which can run code when it is read.\n"
                "Save it as safetensors."
            )
        return
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  (no dict)
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"{path}: expected a whole safetensors file, got a truncated or damaged one: {error}"
        ) from None
    if isinstance(adapter, Adapter):
        check_factors(str(path), adapter, {key: shape for key, shape in shapes.items() if key.startswith(STEM)})


def check_factors(where: str, adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise FormatError unless the tensors with these keys and shapes are the factors of the adapter."""
    wanted = {f"{STEM}{name}": slot for name, slot in adapter.slots.items()}
    missing = [key for key, slot in wanted.items() if slot.is_stored and key not in shapes]
    if odd := [*missing, *sorted(shapes.keys() - wanted.keys())]:
        given = f"none named {odd[0]}" if missing else f"{odd[0]}, which is not one of them"
        raise FormatError(f"{where}: expected the factors of this adapter, got {given}.\nNothing was loaded.")
    for key, shape in shapes.items():
        if shape != wanted[key].shape:
            raise FormatError(
                f"{where}: expected {key} with shape {wanted[key].shape}, got {shape}.\nNothing was loaded."
            )


def is_drawn(adapter: Adapter) -> bool:
    """Return whether values that no file stores follow from the seed: frozen factors, or starts that are subtracted."""
    return bool(adapter.starts) or any(not slot.is_stored for slot in adapter.slots.values())


def drawn_factors(adapter: Adapter) -> dict[str, Tensor]:
    """Draw the frozen factors that a file does not store, by their keys in the file."""
    names = [name for name, slot in adapter.slots.items() if not slot.is_stored]
    values = redraw(adapter) if names else {}
    return {f"{STEM}{name}": torch.from_numpy(values[name]).float() for name in names}


def read_seed(state_dict: Mapping[str, Tensor], adapter: Adapter, *, is_known: bool) -> int:
    """Return the seed of the values that a checkpoint does not store.

    Raises:
        FormatError: the checkpoint is of an older release, which did not store the seed, and the seed is not known.
    """
    if SEED in state_dict:
        found = state_dict[SEED]
        if found.shape == () and found.dtype == torch.int64 and found >= 0:
            return int(found)
        raise FormatError(
            f"the checkpoint: expected a seed under {SEED}, got a {found.dtype} tensor of shape {tuple(found.shape)}.\n"
            "Nothing was loaded."
        )
    if is_drawn(adapter) and not is_known:
        raise FormatError(
            "the checkpoint: expected the seed of the values that it does not store, got none.\n"
            "Nothing was loaded. Give the adapter that seed: TnConfig(..., seed=...). Before the seed was stored, it "
            "was 0 by default."
        )
    return adapter.seed
