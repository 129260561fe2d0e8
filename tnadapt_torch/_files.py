"""Load an adapter onto a model, from its own file or from a PEFT checkpoint."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tnadapt import Adapter, FormatError, read_peft
from tnadapt.binding import (
    Checkpoint,
    answers,
    check_fingerprint,
    expect_path,
    host_entry,
    nearest,
    read_checkpoint,
    watched,
)
from tnadapt_torch._attach import install
from tnadapt_torch._host import (
    HostEntries,
    Weight,
    check_model,
    find_parameters,
    find_tie,
    host_parts,
    is_linear,
    linear_weight,
    name_class,
    parameter_paths,
    place_params,
    settle_weights,
    unwrapped,
)
from tnadapt_torch._sharded import laid_like
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
    draw_limit: int | None = None,
) -> AdapterState:
    """Load an adapter from its file and attach it to a model.

    The factors become float32, or float64 if the file stores them as float64. A load that fails leaves the model
    unchanged.

    Args:
        model: a model with the weights that the adapter was saved for.
        path: the file.
        dropout: the dropout probability on the adapter's input during training.
        adapter_name: an identifier that no other adapter on the model has.
        target_parameters: the layouts of parameters that do not belong to a linear layer, as in `attach`.
        draw_limit: the most frozen numbers to draw again, as for `tnadapt.binding.read_checkpoint`.

    Returns:
        The adapter's state, as `attach` returns it.

    Raises:
        FormatError: the file is damaged or was saved for another model; the message names the first difference.
        SiteError: the name is in use on the model, or another argument is not valid.
    """
    check_model(model, "load")
    model = unwrapped(model)
    expect_path(path, "load", FormatError)
    return _attach(
        model,
        read_checkpoint(path, draw_limit=draw_limit),
        path,
        layouts=target_parameters or {},
        dropout=dropout,
        adapter_name=adapter_name,
    )


@answers(FormatError)
def load_peft(
    model: nn.Module, directory: str | os.PathLike[str], *, dropout: float = 0.0, adapter_name: str = "default"
) -> AdapterState:
    """Load a LoRA, VeRA, LoHa or LoKr checkpoint of PEFT and attach it to a model.

    A load that fails leaves the model unchanged.

    Args:
        model: the bare model, not wrapped by PEFT, with the modules that the checkpoint adapts.
        directory: the folder that PEFT saved.
        dropout: the dropout probability on the adapter's input during training.
        adapter_name: an identifier that no other adapter on the model has.

    Returns:
        The adapter's state, as `attach` returns it.

    Raises:
        FormatError: the checkpoint was saved for another model, or `tnadapt.read_peft` does not accept it.
        SiteError: the name is in use on the model, or another argument is not valid.
    """
    check_model(model, "load_peft")
    model = unwrapped(model)
    expect_path(directory, "load_peft", FormatError)
    shapes = {path: linear_weight(module).shape for path, module in host_modules(model).items() if is_linear(module)}
    checkpoint = read_peft(directory, shapes=shapes)
    if pair := find_tie(model, checkpoint.extra):
        raise FormatError(
            f"{directory}: expected a model in which {pair[0]} is a separate parameter, "
            f"got one in which {pair[1]} is the same parameter.\n"
            f"PEFT trained a copy of {pair[0]}, so loading it would change {pair[1]} too. "
            f"Give the model a separate {pair[0]} first."
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
    weights = weights_of(model, checkpoint.adapter, path, layouts)
    settle_weights(model, weights)
    saved = _saved_of(model, checkpoint.extra, path)
    dtype = torch.float64 if checkpoint.is_double else torch.float32
    params = {name: torch.from_numpy(value).to(dtype, copy=True) for name, value in checkpoint.params.items()}
    _check_hosts(checkpoint, weights, path)
    params = place_params(checkpoint.adapter, weights, params | host_parts(checkpoint.adapter, weights))
    state = AdapterState(checkpoint.adapter, params, name=adapter_name, dropout=dropout)
    install(model, state, weights, saved)
    try:
        with torch.no_grad():
            for key, value in state.saved.values().items():
                value.copy_(laid_like(torch.from_numpy(checkpoint.extra[key]), value))
    except BaseException:
        state.detach()
        raise
    return state


def _check_hosts(checkpoint: Checkpoint, weights: Mapping[str, Weight], path: str | os.PathLike[str]) -> None:
    """Raise FormatError unless the weights that are factors of the adapter are those that it was saved with."""
    if not checkpoint.hosts:
        return
    entries = HostEntries(checkpoint.adapter, weights)
    with watched(checkpoint.adapter.sites, "check the weights") as sites:
        for site in sites:
            check_fingerprint(Path(path), site, checkpoint.hosts[site.path], entries[host_entry(site)])


def weights_of(
    model: nn.Module, adapter: Adapter, path: str | os.PathLike[str], layouts: Mapping[str, str]
) -> dict[str, Weight]:
    """Find the weights of an adapter's sites. Raise FormatError for one that is missing or differs in shape."""
    modules = host_modules(model)
    known = {name: linear_weight(module, name) for name, module in modules.items() if is_linear(module)}
    known |= find_parameters(modules, layouts)
    for name, (site, *_) in adapter.weights.items():
        if name not in known or known[name].shape != site.weight_shape:
            raise FormatError(
                f"{path}: expected a model where {name} has a weight of shape {site.weight_shape}, "
                f"got one where it is {_found(name, known, modules)}"
            )
    return {name: known[name] for name in adapter.weights}


def _found(name: str, known: Mapping[str, Weight], modules: Mapping[str, nn.Module]) -> str:
    """Return what a model has in place of a weight of the file, and what to do."""
    if name in known:
        return f"{known[name].shape}.\nLoad the file onto the model that it was saved for."
    if name in modules:
        todo = "Load the file onto the model that it was saved for, before its layers are replaced."
        return f"{name_class(modules[name])}.\n{todo}"
    if name in parameter_paths(modules):
        return "a parameter without a layout.\nPass target_parameters, with the layout that attach got."
    return f"missing.{nearest(name, list(known))}"


def _saved_of(model: nn.Module, extra: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> dict[str, nn.Module]:
    """Find the modules that were saved in full. Raise FormatError if a tensor is missing or differs in shape."""
    modules = host_modules(model)
    owners = {}
    for key, value in extra.items():
        owner, _, leaf = key.rpartition(".")
        found = modules[owner].state_dict().get(leaf) if owner in modules else None
        if found is None or found.shape != value.shape:
            here = "missing" if found is None else f"of shape {tuple(found.shape)}"
            raise FormatError(
                f"{path}: expected a model where {key} has shape {value.shape}, got one where it is {here}."
            )
        owners[owner] = modules[owner]
    return owners
