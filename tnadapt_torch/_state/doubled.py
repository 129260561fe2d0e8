"""A warning for an adapter of PEFT that is loaded onto a model which has the same update already."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import torch
from torch import Tensor, nn

from tnadapt_torch._host import module_at
from tnadapt_torch._state.known import states_of
from tnadapt_torch._state.replicas import shared_by

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []

P = ParamSpec("P")
LOAD = "load_adapter"  # the name of the method, which `PeftModel.from_pretrained` calls too
ALIKE = 0.8  # cosine of two updates: an export of a lower rank, or of an earlier step, is not exact


def telling(load: Callable[P, Any]) -> Callable[P, Any]:
    """Return the method of PEFT, with a warning after it if an update counts twice now.

    A LoRA that `save_as_lora` wrote is such an adapter, while the one that it was made from is still attached.
    """

    @wraps(load)
    def loading(*args: P.args, **kwargs: P.kwargs) -> Any:
        result = load(*args, **kwargs)
        module: Any = args[0]
        for state in states_of(module):
            for name in _doubles_of(state):
                warnings.warn(
                    f"{LOAD}: adapter {name!r} of PEFT has the update of adapter {state.name!r}, which "
                    f"{'is merged into' if state.merged else 'is attached to'} this model: it counts twice.\n"
                    f"Call detach() on {state.name!r}{' after unmerge()' if state.merged else ''}.",
                    stacklevel=2,
                )
        return result

    return loading


@torch.no_grad()
def _doubles_of(state: "AdapterState") -> list[str]:
    """Return the adapters of PEFT that are active and have the update of this one at its first site."""
    path, weight = next(iter(state.weights.items()))
    layer: Any = module_at(state.model, path)
    known = getattr(layer, "lora_A", None)
    values = [*state.params().values(), *([weight.parameter] if weight.is_stored else [])]
    if not isinstance(known, nn.ModuleDict) or any(value.is_meta for value in values) or shared_by(state):
        return []
    own = state._update_of(path, weight)
    return [name for name in layer.active_adapters if name in known and _alike(layer.get_delta_weight(name), own)]


def _alike(found: Tensor, own: Tensor) -> bool:
    if found.shape != own.shape or found.is_meta:
        return False
    given, here = found.float().flatten(), own.to(found.device).float().flatten()
    return bool(given @ here > ALIKE * given.norm() * here.norm() > 0)
