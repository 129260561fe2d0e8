"""What a state dict says about the weights beside it: whether updates are merged, and which values modules hold.

Without it, a state dict of a merged model would be loaded as a plain one, and every update would count twice.
"""

import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tnadapt import SiteError
from tnadapt.binding import HOST_PARTS, check_patterns
from tnadapt_torch._host import Weight, plain_path
from tnadapt_torch._sharded import whole
from tnadapt_torch._state.factors import to_numpy

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []

CLOSE = 0.01  # relative; bfloat16 rounds by 0.002
FACTOR = re.compile(r"tnadapt_(\w+)\.factors\.")
MERGED, ORIGINAL = "merged", "original_modules"  # keys beside those of the factors, in these two cases only


def marks_of(state: "AdapterState") -> dict[str, Tensor]:
    """Return the entries that a state dict of this moment needs."""
    found = {}
    if state.merged is not None:
        found[MERGED] = torch.tensor(state.merged.number)
    if not state.saved.is_trained:
        found[ORIGINAL] = torch.tensor(1)
    return found


class MarksCheck:
    """A hook on the host that refuses a state dict whose weights do not fit the adapter, before anything is loaded."""

    def __init__(self, state: "AdapterState") -> None:
        """Store the state."""
        self.state = state

    def __call__(
        self,
        host: nn.Module,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        *lists: list[str],
    ) -> None:
        """Raise SiteError for a state dict of a merged model and a model that is not, or the reverse.

        Raise FormatError for one with other values of a factor that is a fixed pattern.
        """
        state = self.state
        given = {plain_path(key.removeprefix(prefix)): key for key in state_dict if key.startswith(prefix)}
        weights = {
            given[key]: weight
            for weight in state.weights.values()
            for key in (f"{weight.owner}.{weight.name}", f"{weight.owner}.parametrizations.{weight.name}.original")
            if key in given
        }
        _warn_of_others(state, given)
        is_marked, is_merged = f"{state.child_name}.{MERGED}" in given, state.merged is not None
        if weights and is_marked != is_merged:
            self._refuse("with" if is_merged else "without", "merged updates", "unmerge()" if is_merged else "merge()")
        if is_marked and is_merged:
            for key, weight in weights.items():
                if not _equal(state_dict[key], weight.parameter):
                    raise SiteError(
                        f"load_state_dict: expected the merged weights of this model, got another {key}.\n"
                        f"Call unmerge() on adapter {state.name!r}, and load a state dict that was taken unmerged."
                    )
        if not {*HOST_PARTS}.isdisjoint(kind for _, kind in state.adapter.hosts.values()):
            _check_parts({key: weight for key, weight in weights.items() if not weight.storage}, state_dict)
        names = [name for name, slot in state.adapter.slots.items() if slot.is_fixed]
        patterns = {name: state_dict.get(given.get(f"{state.child_name}.factors.{name}", "")) for name in names}
        held = {name: value for name, value in patterns.items() if isinstance(value, Tensor) and not value.is_meta}
        check_patterns(state.adapter, {name: to_numpy(value) for name, value in held.items()})
        saved = [key for key in state.saved.values() if key in given]
        if saved and (f"{state.child_name}.{ORIGINAL}" in given) == state.saved.is_trained:
            self._refuse("with" if state.saved.is_trained else "without", "the trained modules_to_save", "disabled()")
        for weight in state.folded.values():  # a state dict of the plain model, as `save_pretrained` writes it
            plain = given.get(f"{weight.owner}.{weight.name}")
            if plain is not None and weight.is_parametrized:
                renamed = f"{plain.removesuffix(weight.name)}parametrizations.{weight.name}.original"
                state_dict.setdefault(renamed, state_dict.pop(plain))

    def _refuse(self, wanted: str, what: str, how: str) -> None:
        other = "without" if wanted == "with" else "with"
        raise SiteError(
            f"load_state_dict: expected a state dict {wanted} {what} of adapter {self.state.name!r}, "
            f"as this model has now, got one {other} them.\n"
            f"Nothing of this model was loaded. Take both in the same state: inside or outside {how}."
        )


def _warn_of_others(state: "AdapterState", given: Mapping[str, str]) -> None:
    """Warn if a state dict has factors of adapters that the host does not have, and none of this one."""
    names = {found[1] for key in given if (found := FACTOR.match(key))}
    others = sorted(name for name in names if f"tnadapt_{name}" not in state.model._modules)
    if others and state.name not in names:
        warnings.warn(
            f"load_state_dict: expected factors of adapter {state.name!r}, got those of {others[0]!r}, which is not on "
            f"this model.\nThe factors of {state.name!r} stay as they were. "
            f"To load the others, attach with adapter_name={others[0]!r}.",
            stacklevel=3,
        )


def _check_parts(weights: Mapping[str, Weight], given: Mapping[str, Any]) -> None:
    """Raise SiteError for other weights than those whose SVDs are factors, up to the rounding of a dtype."""
    for key, weight in weights.items():
        here = whole(weight.parameter.detach())
        if not isinstance(given[key], Tensor) or given[key].shape != here.shape or here.is_meta or given[key].is_meta:
            continue  # load_state_dict says so, or there is nothing to compare
        if torch.linalg.norm(whole(given[key].detach()).to(here) - here) > CLOSE * torch.linalg.norm(here):
            raise SiteError(
                f"load_state_dict: expected the weight of this model as {key}, since its SVD is a factor of an "
                "adapter, got another.\nNothing of this model was loaded. Load the weights first, and attach after."
            )


def _equal(given: Any, here: Tensor) -> bool:
    if not isinstance(given, Tensor) or given.shape != here.shape:
        return False
    full = whole(here.detach())
    return torch.equal(whole(given.detach()).to(full), full)
