"""The module that owns every factor of an adapter exactly once, and what a user does with an attached adapter."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import tnadapt
from tnadapt import Adapter, Group, Site, SiteError
from tnadapt_torch._find import is_conv1d
from tnadapt_torch._merge import Merged
from tnadapt_torch._site import Part, Ref, Row, SiteHook, Stack

__all__ = ["AdapterState"]


class Factors(nn.Module):
    """A node of the tree of factors: a name in params with dots is a path through such nodes."""


class AdapterState(nn.Module):
    """An attached adapter. Trainable factors are its parameters, frozen ones its buffers, each held once.

    `params()` gives them by the names of the core. Made by `attach` and `load`; called as a module it returns its
    input, so that a container that runs all its children runs it without effect.
    """

    def __init__(self, adapter: Adapter, params: Mapping[str, Tensor], *, name: str, dropout: float) -> None:
        """Args: the adapter, its params as tensors, its name on the host, the dropout on every site's x."""
        super().__init__()
        self.adapter = adapter
        self.name = name
        self.dropout = dropout
        self.enabled = True
        self.merged: Merged | None = None
        self.hooks: dict[str, SiteHook] = {}
        self.stacks: dict[tuple[bool, str], Stack] = {}
        self.handles: list[RemovableHandle] = []
        self.modules_by_path: dict[str, nn.Module] = {}
        self.host: tuple[nn.Module, ...] = ()
        self.frozen_host: list[nn.Parameter] = []
        self.unfrozen_host: list[nn.Parameter] = []
        self.saved_modules: dict[str, nn.Module] = {}
        self.saved_originals: dict[str, Tensor] = {}
        self.factors = Factors()
        self.start = Factors()
        for key, slot in adapter.slots.items():
            _plant(self.factors, key, params[key], trainable=slot.factor.trainable)
            if adapter.spec.centered and slot.factor.trainable:
                _plant(self.start, key, params[key].detach().clone(), trainable=False, persistent=False)

    @property
    def active(self) -> bool:
        """Whether the sites add their updates: switched on, and not merged into the weights."""
        return self.enabled and self.merged is None

    def forward(self, x: Any) -> Any:
        """The input. A root that calls all its children, as nn.Sequential does, calls this one too."""
        return x

    def params(self) -> dict[str, Tensor]:
        """Every factor by its name in the core's params: the parameters and buffers themselves, no copies."""
        return {key: getattr(*_leaf(self.factors, key)) for key in self.adapter.slots}

    def hook_of(self, site: Site) -> SiteHook:
        """A new hook that serves a site of this adapter."""
        group, _ = self.adapter.find(site)
        names = list(group.network.factors)
        refs = [self._ref(self.factors, group, site, name) for name in names]
        start = []
        if self.adapter.spec.centered:
            trees = [self.start if group.network.factors[name].trainable else self.factors for name in names]
            start = [self._ref(tree, group, site, name) for tree, name in zip(trees, names, strict=True)]
        return SiteHook(self, site.path, group.network, refs, start)

    def _ref(self, tree: nn.Module, group: Group, site: Site, factor: str) -> Ref:
        """Where a site finds a factor in a tree; a stacked factor is taken apart in one place for all sites."""
        key = self.adapter.slot_name(group, factor)
        network, modes = group.network, group.network.factors[factor].modes
        owner, leaf = _leaf(tree, key)
        place = group.index(site)
        if axes := tuple(axis for axis, mode in enumerate(modes) if mode in place):
            stack = self.stacks.setdefault((tree is self.start, key), Stack(owner, leaf, axes))
            return Row(stack, tuple(place[modes[axis]] for axis in axes))
        shape = network.shape(factor)
        whole = shape == self.adapter.slots[key].shape
        return Part(owner, leaf, None if whole else tuple(map(slice, shape)))

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it the host computes as if nothing were attached: no update, original modules_to_save.

        Raises SiteError when the adapter is merged, since the weights hold the update then.
        """
        if self.merged is not None:
            raise SiteError(
                f"adapter {self.name!r}: is merged, so its update cannot be left out.\nCall unmerge() first."
            )
        before, self.enabled = self.enabled, False
        if before:
            self._swap_saved()
        try:
            yield
        finally:
            self.enabled = before
            if before:
                self._swap_saved()

    def delta(self, path: str) -> Tensor:
        """The update of the weight at a site's path, in float32 or better, in that weight's own layout."""
        self.adapter.find(path)
        weight = self.modules_by_path[path].get_parameter("weight")
        wide = torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32
        update = self.hooks[path].delta(torch.empty((), dtype=wide, device=weight.device))
        return update.T if is_conv1d(self.modules_by_path[path]) else update

    def merge(self) -> None:
        """Add every update to its weight, in float32 or better, rounded once; all sites or none.

        Raises SiteError for an update that is not finite, a weight that is shared, quantized, or merged already.
        """
        if self.merged is not None:
            raise SiteError(f"adapter {self.name!r}: is merged already.")
        (host,) = self.host
        number = 1 + max((other.merged.number for other in states_of(host) if other.merged), default=0)
        deltas = {path: partial(self.delta, path) for path in self.hooks}
        self.merged = Merged.write(host, self.modules_by_path, deltas, number)

    def unmerge(self) -> None:
        """Put the saved weights back, bit for bit.

        Raises SiteError when it is not merged, or when another adapter was merged later.
        """
        if self.merged is None:
            raise SiteError(f"adapter {self.name!r}: is not merged.")
        later = [
            other for other in states_of(self.host[0]) if other.merged and other.merged.number > self.merged.number
        ]
        if any(set(other.hooks) & set(self.hooks) for other in later):
            raise SiteError(f"adapter {self.name!r}: {later[0].name!r} was merged later.\nUnmerge that one first.")
        self.merged.restore()
        self.merged = None

    def detach(self) -> None:
        """Take the adapter off the host, which is then as before attach. A merged update stays in the weights."""
        (host,) = self.host
        if self.enabled and self.merged is None:
            self._swap_saved()
        for handle in self.handles:
            handle.remove()
        delattr(host, child_name(self.name))
        for parameter in self.unfrozen_host:
            parameter.requires_grad_(False)
        if others := states_of(host):
            others[0].frozen_host += self.frozen_host
        else:
            for parameter in self.frozen_host:
                parameter.requires_grad_(True)
        self.host, self.handles, self.frozen_host, self.unfrozen_host = (), [], [], []

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the adapter's file: its trained factors and its modules_to_save. bfloat16 is stored as float32."""
        params = {key: _numpy(value) for key, value in self.params().items() if self.adapter.slots[key].is_stored}
        extra = {key: _numpy(value) for key, value in self.saved_state().items()}
        tnadapt.save(self.adapter, params, path, extra=extra)

    def saved_state(self) -> dict[str, Tensor]:
        """The floating tensors of modules_to_save by their names in the host."""
        return {
            f"{path}.{key}": value
            for path, module in self.saved_modules.items()
            for key, value in module.state_dict(keep_vars=True).items()
            if value.is_floating_point()
        }

    def _swap_saved(self) -> None:
        with torch.no_grad():
            for key, value in self.saved_state().items():
                trained = value.detach().clone()
                value.copy_(self.saved_originals[key])
                self.saved_originals[key] = trained

    def print_trainable_parameters(self) -> None:
        """One line: trainable and all parameters of the host, frozen factors included, and their share."""
        (host,) = self.host
        trained = sum(parameter.numel() for parameter in host.parameters() if parameter.requires_grad)
        whole = sum(parameter.numel() for parameter in host.parameters())
        whole += sum(buffer.numel() for buffer in self.factors.buffers())
        print(f"trainable params: {trained:,} || all params: {whole:,} || trainable%: {100 * trained / whole:.4f}")

    def table(self) -> str:
        """What was matched: one line a site."""
        rows = [("path", "layer", "kind", "weight", "module")]
        for site in self.adapter.sites:
            module = type(self.modules_by_path[site.path]).__name__
            weight = " x ".join(map(str, site.shape))
            rows.append((site.path, str(site.coordinates["layer"]), str(site.coordinates["kind"]), weight, module))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def extra_repr(self) -> str:
        """Spec, sites and count, for print(model)."""
        trained = tnadapt.count(self.adapter).trainable
        return f"{self.adapter.spec.name}, name={self.name!r}, sites={len(self.adapter.sites)}, trainable={trained:,}"


def child_name(name: str) -> str:
    """The name of an adapter's state among its host's children."""
    return f"tnadapt_{name}"


def states_of(host: nn.Module) -> list[AdapterState]:
    """The adapters on a host."""
    return [child for child in host.children() if isinstance(child, AdapterState)]


def _leaf(tree: nn.Module, key: str) -> tuple[nn.Module, str]:
    *path, leaf = key.split(".")
    return tree.get_submodule(".".join(path)), leaf


def _plant(tree: nn.Module, key: str, value: Tensor, *, trainable: bool, persistent: bool = True) -> None:
    *path, leaf = key.split(".")
    for name in path:
        if name not in tree._modules:
            tree.add_module(name, Factors())
        tree = tree.get_submodule(name)
    if trainable:
        tree.register_parameter(leaf, nn.Parameter(value))
    else:
        tree.register_buffer(leaf, value, persistent=persistent)


def _numpy(tensor: Tensor) -> Any:
    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return wide.detach().cpu().numpy()
