"""Tell, once, which adapted layers did not run in the first training forward: they are not trained."""

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tnadapt_torch._run import BlocksUpdate, Update
from tnadapt_torch.peft._layer import TnLayer, TnLinear

if TYPE_CHECKING:
    from tnadapt_torch.peft._tuner import TnModel

__all__: list[str] = []

SHOWN = 8  # paths that the warning names


class Watch:
    """A forward hook on the host. It removes itself after the first training forward of the adapters in use."""

    def __init__(self, tuner: "TnModel") -> None:
        """Store the tuner."""
        self.tuner = tuner

    def __call__(self, host: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """Warn about the layers of the adapters in use that have not run yet."""
        tuner = self.tuner
        layers = tuner._layers()
        away = any(layer.disable_adapters or layer.merged for layer in layers.values())
        # A pass that is compiled or traced is not noticed by the sites.
        is_traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
        if away or is_traced or not (host.training and torch.is_grad_enabled()):
            return
        watched = [name for name in tuner.active_adapters if name in tuner.unwatched]
        tuner.end_watch()
        tuner.unwatched.difference_update(watched)
        compiled = {id(module) for top in host.modules() if _is_compiled(top) for module in top.modules()}
        idle = idle_layers({path: layer for path, layer in layers.items() if id(layer) not in compiled}, watched)
        if not idle:
            return
        rest = f" and {len(idle) - SHOWN} more" if len(idle) > SHOWN else ""
        warnings.warn(
            "adapted layers: expected each of them to be called in the first training forward, "
            f"got {len(idle)} that {'was' if len(idle) == 1 else 'were'} not: {', '.join(idle[:SHOWN])}{rest}.\n"
            "Such a layer is not trained, unless a later batch reaches it. If the model reads its weight without "
            "calling it, write TnConfig(fold=True). Otherwise name it in exclude_modules or modules_to_save.",
            stacklevel=2,
        )


def idle_layers(layers: Mapping[str, TnLayer], names: Iterable[str]) -> list[str]:
    """Return the paths of the linear layers on which one of these adapters never ran."""
    return [
        layer.path
        for layer in layers.values()
        if isinstance(layer, TnLinear)
        and any(
            _is_idle(layer.tnadapt_updates[name][layer.path])
            for name in names
            if name in layer.tnadapt_updates and name not in layer.folded
        )
    ]


def _is_idle(update: Update) -> bool:
    sites = list(update.by_task.get(update.owner.task, {}).values()) if isinstance(update, BlocksUpdate) else [update]
    return bool(sites) and all(site.is_idle for site in sites)


def _is_compiled(module: nn.Module) -> bool:
    """Return whether a module is compiled: the sites inside leave no trace when they run."""
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
