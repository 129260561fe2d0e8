"""An adapter from its file, or from a checkpoint of PEFT, onto a model."""

import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from tnadapt import Adapter, FormatError, read_peft
from tnadapt.binding import Checkpoint, answers, expect_path, read_checkpoint
from tnadapt_torch._attach import install
from tnadapt_torch._host import Weight, check_model, find_parameters, find_tie, is_linear, linear_weight
from tnadapt_torch._state import AdapterState, host_modules

__all__ = ["load", "load_peft"]


@answers(FormatError)
def load(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    dropout: float = 0.0,
    adapter_name: str = "default",
    target_parameters: Mapping[str, str] | None = None,
) -> AdapterState:
    """Attach the adapter of a file to a model that has its sites. The factors are float32, or float64 if stored so.

    `target_parameters` says how parameters that no linear layer is called with are stored, as in `attach`.
    Raises FormatError for a file that is damaged or for another model (what differs is named), SiteError for a name
    that is taken; the model is then as it was.
    """
    check_model(model, "load")
    expect_path(path, "load", FormatError)
    return _attach(
        model, read_checkpoint(path), path, layouts=target_parameters or {}, dropout=dropout, adapter_name=adapter_name
    )


@answers(FormatError)
def load_peft(
    model: nn.Module, directory: str | os.PathLike[str], *, dropout: float = 0.0, adapter_name: str = "default"
) -> AdapterState:
    """Attach the LoRA, VeRA, LoHa or LoKr that PEFT saved in a folder to a model that has its modules.

    The model is the bare one, which PEFT has not wrapped. Raises as `tnadapt.read_peft` does, FormatError for a
    checkpoint of another model, SiteError for a name that is taken; the model is then as it was.
    """
    check_model(model, "load_peft")
    expect_path(directory, "load_peft", FormatError)
    shapes = {path: linear_weight(module).shape for path, module in host_modules(model).items() if is_linear(module)}
    checkpoint = read_peft(directory, shapes=shapes)
    if pair := find_tie(model, checkpoint.extra):
        raise FormatError(
            f"{directory}: holds {pair[0]}, of a copy that PEFT trained.\n"
            f"However, in this model {pair[1]} is the same parameter, and would be changed with it.\n"
            f"Give the model a {pair[0]} of its own first."
        )
    return _attach(model, checkpoint, directory, layouts={}, dropout=dropout, adapter_name=adapter_name)


def _attach(
    model: nn.Module,
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    *,
    layouts: Mapping[str, str],
    dropout: float,
    adapter_name: str,
) -> AdapterState:
    weights = _weights_of(model, checkpoint.adapter, path, layouts)
    saved = _saved_of(model, checkpoint.extra, path)
    dtype = torch.float64 if checkpoint.is_double else torch.float32
    params = {name: torch.from_numpy(value).to(dtype) for name, value in checkpoint.params.items()}
    state = AdapterState(checkpoint.adapter, params, name=adapter_name, dropout=dropout)
    install(model, state, weights, saved)
    with torch.no_grad():
        for key, value in state.saved.values().items():
            value.copy_(torch.from_numpy(checkpoint.extra[key]))
    return state


def _weights_of(
    model: nn.Module, adapter: Adapter, path: str | os.PathLike[str], layouts: Mapping[str, str]
) -> dict[str, Weight]:
    """The weights of an adapter's sites. Raises FormatError naming what this model lacks or has otherwise."""
    modules = host_modules(model)
    known = {name: linear_weight(module) for name, module in modules.items() if is_linear(module)}
    known |= find_parameters(modules, layouts)
    for name, (site, *_) in adapter.weights.items():
        found = known[name].shape if name in known else type(modules[name]).__name__ if name in modules else "missing"
        if found != site.weight_shape:
            raise FormatError(
                f"{path}: was made for a model where {name} has a weight of shape {site.weight_shape}.\n"
                f"However, in this model it is {found}."
            )
    return {name: known[name] for name in adapter.weights}


def _saved_of(model: nn.Module, extra: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> dict[str, nn.Module]:
    """The modules that own the tensors saved along. Raises FormatError for one that is missing or of another shape."""
    modules = host_modules(model)
    owners = {}
    for key, value in extra.items():
        owner, _, leaf = key.rpartition(".")
        found = modules[owner].state_dict().get(leaf) if owner in modules else None
        if found is None or found.shape != value.shape:
            here = "missing" if found is None else f"of shape {tuple(found.shape)}"
            raise FormatError(f"{path}: holds {key} of shape {value.shape}.\nHowever, in this model it is {here}.")
        owners[owner] = modules[owner]
    return owners
