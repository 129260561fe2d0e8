"""Models that hold an adapted one, whose own `save_pretrained` would lose the adapter without a word.

They may be there before the attach, and a module does not know what holds it. So the method is wrapped once in the
class. It does the same as before for a model without an adapter. So is the method that loads an adapter of PEFT.
"""

import sys
from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any, ParamSpec

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from tnadapt_torch._state.doubled import LOAD, telling
from tnadapt_torch._state.given import PLACE
from tnadapt_torch._state.pretrained import Saving, is_concerned

__all__: list[str] = []

P = ParamSpec("P")
OWNERS = {  # module -> the class that defines the method for others
    "transformers.modeling_utils": "PreTrainedModel",
    "peft.peft_model": "PeftModel",
    "huggingface_hub.hub_mixin": "ModelHubMixin",
    "diffusers.models.modeling_utils": "ModelMixin",
}
LOADERS = {"peft.peft_model": "PeftModel", "transformers.integrations.peft": "PeftAdapterMixin"}


class Enclosing:
    """Keeps the methods wrapped for an adapter, also in a process that got it by a pickle.

    Each class that is imported by now is wrapped at once. A model can only hold another after its class was imported,
    by a registration of the other, which torch announces.
    """

    def __init__(self) -> None:
        """Wrap the methods and wait for other classes, if that was not done before."""
        _wrap_classes()
        if not _hooks:
            _hooks.append(register_module_module_registration_hook(_look))

    def __reduce__(self) -> tuple[type["Enclosing"], tuple[()]]:
        return Enclosing, ()

    def remove(self) -> None:
        """Leave the methods as they are: they do the same as before for a model without an adapter."""


_hooks: list[Any] = []
_wrapped: dict[tuple[str, str], type] = {}  # by module and method


def _look(parent: nn.Module, name: str, child: nn.Module) -> None:
    """Wrap the classes that were imported since. A compiler that traces backward passes registers modules as well."""
    if len(_wrapped) < len(OWNERS) + len(LOADERS) and not torch.compiler.is_compiling():
        _wrap_classes()


def _wrap_classes() -> None:
    for method, owners, wrapper in ((PLACE, OWNERS, _heeding), (LOAD, LOADERS, telling)):
        for name, title in owners.items():
            owner: Any = getattr(sys.modules.get(name), title, None)
            if method in vars(owner or object) and (name, method) not in _wrapped:
                _wrapped[name, method] = owner
                setattr(owner, method, wrapper(vars(owner)[method]))


def _heeding(save: Callable[P, Any]) -> Callable[P, Any]:
    """Return the method, with a `Saving` before it for a module that holds an adapter and has none."""

    @wraps(save)
    def heeding(*args: P.args, **kwargs: P.kwargs) -> Any:
        module: Any = args[0]
        is_known = not isinstance(module, nn.Module) or isinstance(vars(module).get(PLACE), Saving)
        if is_known or not is_concerned(module):
            return save(*args, **kwargs)
        return Saving(module, (), MethodType(save, module))(*args[1:], **kwargs)

    return heeding
