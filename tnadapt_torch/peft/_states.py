"""The state of an adapter under PEFT: how it is made from a config, and how it takes the seed of a checkpoint."""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import torch
from torch import nn

from tnadapt import SiteError, sites_of, split_sites
from tnadapt.binding import drawn_starts
from tnadapt_torch._host import Weight, check_foldable, place_params, plain_path, start_params, weights_to_fold
from tnadapt_torch._state import AdapterState, make_updates
from tnadapt_torch.peft._checkpoint import SEED, STEM
from tnadapt_torch.peft._config import TnConfig
from tnadapt_torch.peft._rows import BASE

__all__: list[str] = []

DRAWN = 2**31  # seeds that are drawn are below this


def new_state(model: nn.Module, config: TnConfig, weights: Mapping[str, Weight], name: str) -> AdapterState:
    """Make the state of an adapter for these weights of a model.

    Raises:
        SiteError: the config does not fit the weights.
        FormatError: the config is that of a saved adapter, which was saved from other weights.
    """
    shapes = {path: weight.shape for path, weight in weights.items()}
    sites = split_sites(
        sites_of(shapes, among=[plain_path(path) for path, _ in model.named_parameters()]),
        blocks=config.blocks,
        fused=config.fused,
        experts=[path for path, weight in weights.items() if "expert" in weight.layout],
        tasks=config.tasks,
    )
    adapter = config.bind(sites, draw_seed() if config.seed is None else config.seed)
    config.check(adapter)
    config.seal(None)
    folded = weights_to_fold(model, weights, config.dropout, all_of_them=config.fold)
    if folded:
        check_foldable(folded, config.dropout)
    params = start_params(adapter, weights)
    state = AdapterState(adapter, place_params(adapter, weights, params), name=name, dropout=config.dropout)
    state.weights, state.folded = dict(weights), folded
    state.updates = make_updates(state)
    return state


def draw_seed() -> int:
    """Draw a seed from torch's generator; if there are several processes, return 0, since theirs may differ."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return 0
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        return 0
    return int(torch.randint(DRAWN, (), device="cpu"))


def reseed(state: AdapterState, seed: int) -> None:
    """Let the values that no file stores follow from another seed. The frozen factors are set by the load."""
    state.adapter = replace(state.adapter, seed=seed)
    with torch.no_grad():
        for key, value in drawn_starts(state.adapter).items():
            owner, _, leaf = key.rpartition(".")
            buffer = state.start.get_submodule(owner)._buffers[leaf]
            assert buffer is not None
            buffer.copy_(torch.from_numpy(value))


def check_name(name: object, taken: Collection[str], states: Iterable[AdapterState], saved: Iterable[str]) -> None:
    """Raise SiteError for the name of an adapter that PEFT could not hold or tell from other words in the keys.

    Args:
        name: the name of the new adapter.
        taken: the names of the others.
        states: the states of all of them.
        saved: keys of the model, if any adapter trains modules in full, whose keys PEFT also tells apart by such names.
    """
    if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict(), name) or name == BASE:
        raise SiteError(
            f"adapter_name: expected a name without dots that is no word of torch or PEFT, got {name!r}.\n"
            'Write adapter_name="default".'
        )
    keys = [key for state in states for key in state.adapter.slots]
    words = {part for key in [f"{STEM}factors", SEED, *keys, *saved] for part in key.split(".")}
    if wrong := sorted({name, *taken} & words):
        raise SiteError(
            f"adapter_name: expected a name that no factor, group or module has, got {wrong[0]!r}.\n"
            "Choose another name."
        )
