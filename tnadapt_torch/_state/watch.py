"""Tell, once, which sites did not run in the first training forward: they are not trained, and nothing else says so."""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tnadapt_torch._run import BlocksUpdate

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []

SHOWN = 8  # paths that the warning names


class Watch:
    """A forward hook on the host. It removes itself after the first training forward that is not compiled or traced."""

    def __init__(self, state: "AdapterState") -> None:
        """Store the state."""
        self.state = state

    def __call__(self, host: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """Warn about the sites of the current task that have not run yet."""
        state = self.state
        # A pass that is compiled or traced is not noticed by the sites.
        is_traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
        if is_traced or not (host.training and torch.is_grad_enabled() and state.active):
            return
        state.end_watch()
        idle = idle_sites(state)
        if not idle:
            return
        rest = f" and {len(idle) - SHOWN} more" if len(idle) > SHOWN else ""
        warnings.warn(
            f"adapter {state.name!r}: expected every adapted layer to be called in the first training forward, "
            f"got {len(idle)} that {'was' if len(idle) == 1 else 'were'} not: {', '.join(idle[:SHOWN])}{rest}.\n"
            "Such a layer is not trained, unless a later batch reaches it. If the model reads its weight without "
            "calling it, attach with fold=True. Otherwise name it in exclude_modules or modules_to_save.",
            stacklevel=2,
        )


def idle_sites(state: "AdapterState") -> list[str]:
    """Return the paths of the weights with a site of the current task whose module was never called."""
    found = []
    compiled = _compiled(state.model)
    for path, weight in state.weights.items():
        update = state.updates[path]
        sites = list(update.by_task.get(state.task, {}).values()) if isinstance(update, BlocksUpdate) else [update]
        if (
            path not in state.folded
            and sites
            and all(site.is_idle for site in sites)
            and id(weight.module) not in compiled
        ):
            found.append(path)
    return found


def _compiled(host: nn.Module) -> set[int]:
    """Return the ids of the modules inside compiled ones, whose sites leave no trace when they run."""
    tops = [module for module in host.modules() if module._compiled_call_impl or hasattr(module, "_orig_mod")]
    return {id(module) for top in tops for module in top.modules()}
