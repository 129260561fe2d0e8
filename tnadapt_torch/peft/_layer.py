"""The layers that PEFT puts in place of adapted modules: the base layer with the updates of its adapters."""

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import _has_any_global_hook

from tnadapt import SiteError
from tnadapt_torch._host import Merged, Weight, linear_weight
from tnadapt_torch._run import SiteUpdate, Update, find_x, join_layer
from tnadapt_torch._state import AdapterState
from tnadapt_torch.peft._rows import Rows

__all__ = ["TnLinear", "TnParameters"]


class TnLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A module under PEFT. It owns only the base layer; the tuner owns the states of the adapters."""

    adapter_layer_names = ("tnadapt_states",)
    other_param_names = ("tnadapt_updates",)

    base_layer: nn.Module
    tnadapt_states: nn.ModuleDict
    active_adapters: list[str]

    def __init__(self, base_layer: nn.Module, path: str) -> None:
        """Store the module that this one replaces, and its path in the host."""
        super().__init__()
        self.base_layer = base_layer
        self.path = path
        self.tnadapt_updates: dict[str, dict[str, Update]] = {}  # by the adapter, then by the path of the weight
        self.rows: Rows | None = None  # in a call whose rows use different adapters
        # PEFT switches and lists adapters here. Not registered as a child, since the tuner registers each state once.
        self.__dict__["tnadapt_states"] = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self.merges: list[Merged] = []

    @property
    def weights(self) -> dict[str, Weight]:
        """The adapted weights of the base layer, by path."""
        raise NotImplementedError

    def add(self, name: str, state: nn.Module, path: str, update: Update) -> None:
        """Add an adapter to one weight of this layer."""
        self.tnadapt_states[name] = state
        self.tnadapt_updates.setdefault(name, {})[path] = update

    def drop(self, name: str) -> None:
        """Remove an adapter from this layer, active or not."""
        if self.tnadapt_updates.pop(name, None) is not None:
            del self.tnadapt_states[name]

    def get_base_layer(self) -> nn.Module:
        """Return the innermost base layer, below the layers of other PEFT methods."""
        return cast("nn.Module", BaseTunerLayer.get_base_layer(self))

    def _in_use(self) -> list[str]:
        """Return the adapters whose updates a call adds. If adapters are disabled, unmerge them first, as PEFT does."""
        if self._disable_adapters or self.merged_adapters:
            if self._disable_adapters and self.merged_adapters:
                self.unmerge()
            return []
        return [name for name in self.active_adapters if name in self.tnadapt_updates]

    def _call(self, args: Any, kwargs: Any, *folded: str) -> Tensor:
        """Call the base layer, with the updates of these adapters added to its weights."""
        if not folded:
            return cast("Tensor", self.base_layer(*args, **kwargs))
        return cast("Tensor", functional_call(self.base_layer, self._folded(*folded), args, kwargs))

    def _folded(self, *names: str) -> dict[str, Tensor]:
        """Return the weights of the base layer, by name, with the updates of these adapters added."""
        values: dict[str, Tensor] = {}
        weights = self.weights
        for name in names:
            for path, update in self.tnadapt_updates[name].items():
                weight = weights[path]
                stored: Tensor = values.get(weight.name, weight.parameter)
                values[weight.name] = stored + weight.lay(update.delta(stored))
        return values

    def _reads_weight(self, name: str) -> bool:
        """Return whether the update of an adapter is made from the weight itself."""
        return bool(cast("AdapterState", self.tnadapt_states[name]).adapter.hosts)

    def delta(self, adapter: str, path: str) -> Tensor:
        """Return the dense update of a weight in float32 or better, in the layout of the stored weight.

        Raises:
            SiteError: this layer does not have the adapter, or the adapter reads a weight that has others merged.
        """
        if adapter not in self.tnadapt_updates:
            raise SiteError(f"{self.path}: expected one of its adapters {list(self.tnadapt_updates)}, got {adapter!r}.")
        if self.merges and self._reads_weight(adapter):
            raise SiteError(
                f"{path}: expected a weight without merged adapters, since adapter {adapter!r} reads it, got one with "
                f"{', '.join(self.merged_adapters)}.\nCall unmerge_adapter() first. Merge several adapters in one call."
            )
        weight = self.weights[path]
        with torch.no_grad():
            return weight.lay(self.tnadapt_updates[adapter][path].delta(weight.like))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add updates to the base weights, in float32 or better, each rounded once.

        The sums are always checked, whatever `safe_merge` is. A merge that fails leaves this layer unchanged.

        Raises:
            SiteError: a sum is not finite, a weight is quantized, or an adapter reads a weight that has others merged.
        """
        base = self.get_base_layer()
        done = len(self.merges)
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.tnadapt_updates]
        deltas = {
            name: {path: partial(self.delta, name, path) for path in self.tnadapt_updates[name]} for name in names
        }
        for name in names:
            if self._reads_weight(name):  # its update is made before a merge changes what it reads
                deltas[name] = {path: partial(torch.clone, make()) for path, make in deltas[name].items()}
        try:
            for name in names:
                weights = {path: weight for path, weight in self.weights.items() if path in deltas[name]}
                own = {path: deltas[name][path] for path in weights}
                self.merges.append(Merged.write(base, weights, own, len(self.merges)))
                self.merged_adapters.append(name)
        except BaseException:
            self.unmerge_to(done)
            raise
        self._tell_states()

    def unmerge(self) -> None:
        """Restore the base weights, bit for bit. Raise SiteError if one was quantized after the merge."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        self.unmerge_to(0)

    def unmerge_to(self, number: int) -> None:
        """Undo the latest merges until this many are left."""
        while len(self.merges) > number:
            self.merges[-1].restore()
            self.merges.pop()
            self.merged_adapters.pop()
        self._tell_states()

    def _tell_states(self) -> None:
        """Tell the adapters that read weights of this layer what these were before the merges."""
        before: dict[str, Tensor] = {}
        for merged in reversed(self.merges):
            before |= merged.originals
        for name in filter(self._reads_weight, self.tnadapt_updates):
            updates, originals = self.tnadapt_updates[name], cast("AdapterState", self.tnadapt_states[name]).originals
            for path in updates:
                originals.pop(path, None)
            originals |= {path: before[path] for path in updates if path in before}

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter but keep its dtype: factors stay float32 beside a half-precision weight."""
        if adapter_name in self.tnadapt_states:
            stored = next(iter(self.weights.values())).like
            self.tnadapt_states[adapter_name].to(device or stored.device)

    def __repr__(self) -> str:
        """Return the repr with the method's name in front, as PEFT's layers do."""
        return f"tnadapt.{super().__repr__()}"

    def extra_repr(self) -> str:
        """Return the names of the adapters on this layer."""
        return f"adapters={list(self.tnadapt_updates)}"


def _is_bare(module: nn.Module) -> bool:
    """Return whether a call of this layer is a call of nn.Linear and nothing more, so that it can be left out."""
    own = vars(module)
    hooks = own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    is_seen = hooks or _has_any_global_hook()  # type: ignore[no-untyped-call]
    return type(module) is nn.Linear and not is_seen and "forward" not in own


class TnLinear(TnLayer):
    """A linear layer under PEFT."""

    def __init__(self, base_layer: nn.Module, path: str) -> None:
        """Store the layer that this one replaces, and its path in the host."""
        super().__init__(base_layer, path)
        self.folded: set[str] = set()  # the adapters whose update is added to the weight instead of to the output
        self.out_features, self.in_features = linear_weight(self.get_base_layer()).shape

    @property
    def weight(self) -> Tensor:
        """The weight of the base layer, with the updates of adapters in use that fold theirs into it.

        Raises:
            SiteError: the rows of the batch use different adapters, one of which has its update in the weight.
        """
        names = self.folded and self._in_use()
        if names and self.rows is not None:
            raise SiteError(
                f"adapter_names: expected layers that are called, got {self.path}, whose weight was read.\n"
                "One weight cannot serve rows with different adapters. Call the model once for each adapter."
            )
        names = [name for name in names if name in self.folded]
        return self._folded(*names)["weight"] if names else cast("Tensor", super().weight)

    @property
    def weights(self) -> dict[str, Weight]:
        """The weight of the base layer, by path."""
        return {self.path: linear_weight(self.get_base_layer(), self.path)}

    def add(self, name: str, state: nn.Module, path: str, update: Update) -> None:
        """Add an adapter. A plain layer is called together with its update."""
        super().add(name, state, path, update)
        if isinstance(update, SiteUpdate) and self.weights[path].is_plain_linear:
            join_layer(update, path, cast("AdapterState", state).siblings)

    def drop(self, name: str) -> None:
        """Remove an adapter from this layer, active or not."""
        super().drop(name)
        self.folded.discard(name)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter from this layer; if it was active, PEFT chooses another one."""
        super().delete_adapter(adapter_name)
        self.folded.discard(adapter_name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of the base layer with the updates of the active adapters added."""
        if self.rows is not None and not self.disable_adapters:
            return self._forward_rows(self.rows, args, kwargs)
        names, folded = self._in_use(), self.folded
        if len(names) == 1 and not folded and not torch.compiler.is_compiling() and _is_bare(self.base_layer):
            layer = self.tnadapt_updates[names[0]][self.path].layer
            at_once = None if layer is None else layer.call(self.base_layer, args, kwargs)
            if at_once is not None:
                return at_once
        output = self._call(args, kwargs, *(name for name in names if name in folded) if folded else ())
        for name in names:
            if name not in folded:
                output = self.tnadapt_updates[name][self.path](self, args, kwargs, output)
        return output

    def _forward_rows(self, rows: Rows, args: Any, kwargs: Any) -> Tensor:
        """Return the output of the base layer with the update of its own adapter added to each row.

        Raises:
            SiteError: there is not one name per row, or adapters are merged.
        """
        x = find_x(args, kwargs, self.in_features)
        rows.check(self.path, x, self.merged_adapters)
        output = self._call(args, kwargs)
        places, back = rows.split(output.device)
        parts = []
        for name, at in places:
            part, seen = output[at], (x[at],)
            if name in self.folded:
                part = self._call(seen, {}, name)
            elif name in self.tnadapt_updates:
                part = self.tnadapt_updates[name][self.path](self, seen, {}, part)
            parts.append(part)
        return torch.cat(parts)[back] if parts else output

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return the dense update in float32 or better, in the layout of the base weight.

        Raises:
            SiteError: this layer does not have the adapter.
        """
        return self.delta(adapter, self.path)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return True: the update is added to the weight."""
        return True


class TnParameters(TnLayer):
    """A module under PEFT whose own parameters are adapted, such as the experts of a mixture."""

    def __init__(self, base_layer: nn.Module, path: str) -> None:
        """Store the module that this one replaces, and its path in the host."""
        super().__init__(base_layer, path)
        self.layouts: dict[str, tuple[str, tuple[str, ...]]] = {}  # path of a weight -> its name here, and its layout
        self.in_features = self.out_features = None

    @property
    def weights(self) -> dict[str, Weight]:
        """The adapted parameters of the base layer, by path."""
        base = self.get_base_layer()
        return {path: Weight(base, name, layout, path, self.path) for path, (name, layout) in self.layouts.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the base layer with the updates of the active adapters added to its parameters.

        Raises:
            SiteError: the rows of the batch use different adapters.
        """
        if self.rows is not None and not self.disable_adapters:
            raise SiteError(
                f"adapter_names: expected adapters on linear layers alone, got one on the parameters of {self.path}.\n"
                "Its rows cannot be told apart. Call the model once for each adapter."
            )
        return self._call(args, kwargs, *self._in_use())

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the base layer that this layer does not have."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules: Mapping[str, nn.Module] = self.__dict__.get("_modules", {})
            if name == "base_layer" or "base_layer" not in modules:
                raise
            return getattr(modules["base_layer"], name)
