"""What a policy saves of itself to be resumed, and the check of what is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tnadapt import Adapter, SiteError
from tnadapt_torch._sharded import whole
from tnadapt_torch._state import AdapterState

__all__: list[str] = []

SAMPLES = 1024  # numbers of each weight that are compared

Link = tuple[Adapter, dict[str, Tensor]]


@dataclass(frozen=True)
class Saved:
    """A state dict that was checked: the finished links, the running one, and the count of steps."""

    links: list[Link]
    running: Link
    steps: int


def samples_of(state: AdapterState) -> dict[str, Tensor]:
    """Return evenly spaced numbers of each weight that is stored as a parameter of floats, by path."""
    found = {}
    for path, weight in state.weights.items():
        if not weight.storage and weight.is_stored and not weight.parameter.is_meta:
            flat = whole(weight.parameter.detach()).reshape(-1)
            found[path] = flat[:: max(1, flat.numel() // SAMPLES)].to("cpu", copy=True)
    return found


def read_saved(
    state_dict: Mapping[str, Any], options: Mapping[str, Any], base: Adapter, weights: Mapping[str, Tensor]
) -> Saved:
    """Check a state dict against the options of a policy, its adapter and its weights. Raises SiteError."""
    wanted = {*options, "steps", "links", "weights"}
    if not isinstance(state_dict, Mapping) or state_dict.keys() != wanted:
        came = sorted(map(str, state_dict)) if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise _fault(f"a state dict with {', '.join(sorted(wanted))}", f"{came}", "Pass what state_dict() returned.")
    for name, value in options.items():
        if state_dict[name] != value:
            given, mine = (f"{one!r:.200}" for one in (state_dict[name], value))
            raise _fault(f"{name} = {mine}", given, "Make the policy as it was made before, on the same adapter.")
    _check_weights(state_dict["weights"], weights)
    links = [_link(number, link, base) for number, link in enumerate(state_dict["links"])]
    steps = state_dict["steps"]
    if not isinstance(steps, int) or len(links) != 1 + steps // options["every"]:
        raise _fault("one link for each restart and the running one", f"{len(links)} at step {steps!r}", "")
    return Saved(links[:-1], links[-1], steps)


def _check_weights(saved: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for path in sorted(saved.keys() | weights.keys()):
        if path not in saved or path not in weights or not torch.equal(saved[path], weights[path]):
            raise _fault(
                f"the weight {path} from before the first link",
                "another",
                "Load the model that the chain began on, without links in its weights, and attach to it.",
            )


def _link(number: int, link: Mapping[str, Any], base: Adapter) -> Link:
    is_link = isinstance(link, Mapping) and link.keys() == {"seed", "params"} and isinstance(link["params"], Mapping)
    params = link["params"] if is_link else {}
    if not is_link or link["seed"] != base.seed + number or params.keys() != base.slots.keys():
        raise _fault(f"link {number} of this adapter", "another", "Pass what state_dict() returned.")
    for name, value in params.items():
        if tuple(value.shape) != base.slots[name].shape:
            raise _fault(f"{name} of shape {base.slots[name].shape}", f"{tuple(value.shape)}", "")
    return replace(base, seed=link["seed"]), dict(params)


def _fault(wanted: str, came: str, todo: str) -> SiteError:
    return SiteError(f"load_state_dict: expected {wanted}, got {came}.\n{todo or 'The state dict was changed.'}")
