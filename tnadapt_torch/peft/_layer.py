"""The layer that PEFT puts in a linear layer's place: the base layer, and the hook of each adapter that serves it."""

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
    """A linear layer under PEFT. It owns nothing but the base layer; the tuner owns the states of the adapters."""

    adapter_layer_names = ("tnadapt_states",)
    other_param_names = ("tnadapt_hooks",)

    base_layer: nn.Module
    tnadapt_states: nn.ModuleDict
    active_adapters: list[str]

    def __init__(self, base_layer: nn.Module, path: str) -> None:
        """Args: the layer whose place this takes; its path in the host."""
        super().__init__()
        self.base_layer = base_layer
        self.path = path
        self.out_features, self.in_features = linear_weight(self.get_base_layer()).shape
        self.tnadapt_hooks: dict[str, Hook] = {}
        # For PEFT to switch and list adapters. Not registered here: the tuner registers each state, once.
        self.__dict__["tnadapt_states"] = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self.merges: list[Merged] = []

    def add(self, name: str, state: nn.Module, hook: Hook) -> None:
        """Serve one more adapter."""
        self.tnadapt_states[name] = state
        self.tnadapt_hooks[name] = hook

    def drop(self, name: str) -> None:
        """Serve an adapter no more, whatever is active."""
        if self.tnadapt_hooks.pop(name, None) is not None:
            del self.tnadapt_states[name]

    def get_base_layer(self) -> nn.Module:
        """The layer at the bottom, where other methods of PEFT lie between."""
        return cast("nn.Module", BaseTunerLayer.get_base_layer(self))

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's output with the updates of the active adapters added."""
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
        """The dense update in float32 or better, in the base weight's layout. Raises SiteError where there is none."""
        if adapter not in self.tnadapt_hooks:
            raise SiteError(f"{self.path}: has no adapter {adapter!r}.\nIt has {list(self.tnadapt_hooks)}.")
        base = linear_weight(self.get_base_layer())
        weight = base.parameter
        wide = torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32
        with torch.no_grad():
            update = self.tnadapt_hooks[adapter].delta(torch.empty((), dtype=wide, device=weight.device))
        return base.lay(update)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add updates to the base weight, in float32 or better, each rounded once. Always safe, whatever is asked.

        Raises SiteError for a sum that is not finite and for a quantized weight; this layer is then as it was.
        """
        base = self.get_base_layer()
        done = len(self.merges)
        try:
            for name in check_adapters_to_merge(self, adapter_names):
                if name in self.tnadapt_hooks:
                    delta = partial(self.get_delta_weight, name)
                    weights = {self.path: linear_weight(base).parameter}
                    self.merges.append(Merged.write(base, weights, {self.path: delta}, len(self.merges)))
                    self.merged_adapters.append(name)
        except BaseException:
            self.unmerge_to(done)
            raise

    def unmerge(self) -> None:
        """Put the base weight back, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        self.unmerge_to(0)

    def unmerge_to(self, number: int) -> None:
        """Take the latest merges back, until this many are left."""
        while len(self.merges) > number:
            self.merges.pop().restore()
            self.merged_adapters.pop()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Yes: the update is added to the weight."""
        return True

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move, but keep the dtype: factors are float32 also beside a half-precision weight."""
        if adapter_name in self.tnadapt_states:
            self.tnadapt_states[adapter_name].to(device or linear_weight(self.get_base_layer()).parameter.device)

    def __repr__(self) -> str:
        """PEFT marks its layers by the method's name."""
        return f"tnadapt.{super().__repr__()}"

    def extra_repr(self) -> str:
        """The adapters that serve it."""
        return f"adapters={list(self.tnadapt_hooks)}"
