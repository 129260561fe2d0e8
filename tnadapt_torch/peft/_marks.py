"""What a state dict of a whole model says about its base weights: whether adapters are merged into them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tnadapt import SiteError

if TYPE_CHECKING:
    from tnadapt_torch.peft._tuner import TnModel

__all__: list[str] = []

MERGED = "tnadapt_merged"  # the key on the tuner, if adapters are merged


def marks_of(tuner: "TnModel", prefix: str) -> dict[str, Tensor]:
    """Return the entry that a state dict of this moment needs, if any."""
    is_merged = any(layer.merged for layer in tuner._layers().values())
    return {f"{prefix}{MERGED}": torch.tensor(1)} if is_merged else {}


def check_merged(tuner: "TnModel", state_dict: Mapping[str, Any], prefix: str) -> None:
    """Refuse, before anything is loaded, a state dict of a merged model for one that is not, or the reverse.

    A state dict of an adapter alone is not concerned.

    Raises:
        SiteError: the base weights of the state dict do not fit the model of this moment.
    """
    weights = {
        key: weight
        for path, layer in tuner._layers().items()
        for weight in layer.weights.values()
        if (key := f"{prefix}model.{path}.base_layer.{weight.name}") in state_dict
    }
    is_marked, is_merged = f"{prefix}{MERGED}" in state_dict, bool(marks_of(tuner, prefix))
    if weights and is_marked != is_merged:
        here, there = ("with", "without") if is_merged else ("without", "with")
        raise SiteError(
            f"load_state_dict: expected a state dict {here} merged adapters, as this model has now, "
            f"got one {there} them.\nNothing was loaded. Call {'un' if is_merged else ''}merge_adapter() first."
        )
    for key, weight in weights.items() if is_merged else ():
        given, stored = state_dict[key], weight.parameter
        if not (given.shape == stored.shape and torch.equal(given.to(stored), stored)):
            raise SiteError(
                f"load_state_dict: expected the merged weights of this model, got another {key}.\n"
                "Call unmerge_adapter(), and load a state dict that was taken unmerged."
            )
