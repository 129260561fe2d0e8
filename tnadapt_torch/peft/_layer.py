"""The layer that replaces a linear layer under PEFT: the base layer with the hooks of its adapters."""

import warnings
from functools import partial
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from tnadapt import SiteError
from tnadapt_torch._host import Merged, linear_weight
from tnadapt_torch._run import Hook

__all__ = ["TnLinear"]


class TnLinear(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A linear layer under PEFT. It owns only the base layer; the tuner owns the states of the adapters."""

    adapter_layer_names = ("tnadapt_states",)
    other_param_names = ("tnadapt_hooks",)

    base_layer: nn.Module
    tnadapt_states: nn.ModuleDict
    active_adapters: list[str]

    def __init__(self, base_layer: nn.Module, path: str) -> None:
        """Store the layer that this one replaces, and its path in the host."""
        super().__init__()
        self.base_layer = base_layer
        self.path = path
        self.out_features, self.in_features = linear_weight(self.get_base_layer()).shape
        self.tnadapt_hooks: dict[str, Hook] = {}
        # PEFT switches and lists adapters here. Not registered as a child, since the tuner registers each state once.
        self.__dict__["tnadapt_states"] = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self.merges: list[Merged] = []

    def add(self, name: str, state: nn.Module, hook: Hook) -> None:
        """Add an adapter to this layer."""
        self.tnadapt_states[name] = state
        self.tnadapt_hooks[name] = hook

    def drop(self, name: str) -> None:
        """Remove an adapter from this layer, active or not."""
        if self.tnadapt_hooks.pop(name, None) is not None:
            del self.tnadapt_states[name]

    def get_base_layer(self) -> nn.Module:
        """Return the innermost base layer, below the layers of other PEFT methods."""
        return cast("nn.Module", BaseTunerLayer.get_base_layer(self))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the base layer with the updates of the active adapters added."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        output: Tensor = self.base_layer(x)
        if self.disable_adapters or self.merged:
            return output
        for name in self.active_adapters:
            if name in self.tnadapt_hooks:
                output = self.tnadapt_hooks[name](self, (x,), {}, output)
        return output

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return the dense update in float32 or better, in the layout of the base weight.

        Raises:
            SiteError: this layer does not have the adapter.
        """
        if adapter not in self.tnadapt_hooks:
            raise SiteError(f"{self.path}: expected one of its adapters {list(self.tnadapt_hooks)}, got {adapter!r}.")
        base = linear_weight(self.get_base_layer())
        weight = base.parameter
        wide = torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32
        with torch.no_grad():
            update = self.tnadapt_hooks[adapter].delta(torch.empty((), dtype=wide, device=weight.device))
        return base.lay(update)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add updates to the base weight, in float32 or better, each rounded once.

        The sums are always checked, whatever `safe_merge` is. A merge that fails leaves this layer unchanged.

        Raises:
            SiteError: a sum is not finite, or the weight is quantized.
        """
        base = self.get_base_layer()
        done = len(self.merges)
        try:
            for name in check_adapters_to_merge(self, adapter_names):
                if name in self.tnadapt_hooks:
                    delta = partial(self.get_delta_weight, name)
                    weights = {self.path: linear_weight(base, self.path)}
                    self.merges.append(Merged.write(base, weights, {self.path: delta}, len(self.merges)))
                    self.merged_adapters.append(name)
        except BaseException:
            self.unmerge_to(done)
            raise

    def unmerge(self) -> None:
        """Restore the base weight, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        self.unmerge_to(0)

    def unmerge_to(self, number: int) -> None:
        """Undo the latest merges until this many are left."""
        while len(self.merges) > number:
            self.merges.pop().restore()
            self.merged_adapters.pop()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return True: the update is added to the weight."""
        return True

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter but keep its dtype: factors stay float32 beside a half-precision weight."""
        if adapter_name in self.tnadapt_states:
            self.tnadapt_states[adapter_name].to(device or linear_weight(self.get_base_layer()).parameter.device)

    def __repr__(self) -> str:
        """Return the repr with the method's name in front, as PEFT's layers do."""
        return f"tnadapt.{super().__repr__()}"

    def extra_repr(self) -> str:
        """Return the names of the adapters on this layer."""
        return f"adapters={list(self.tnadapt_hooks)}"
