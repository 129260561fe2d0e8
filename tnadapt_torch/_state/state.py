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
from tnadapt import Adapter, AdapterSpec, SiteError
from tnadapt.binding import Written, drawn_starts
from tnadapt_torch._host import Merged, SavedModules, Weight, find_tie, unfold
from tnadapt_torch._run import Hook, Stack
from tnadapt_torch._state.factors import Factors, leaf_of, plant, stored_factors, to_numpy
from tnadapt_torch._state.groups import parameter_groups
from tnadapt_torch._state.norms import norms

__all__ = ["AdapterState"]


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
        self.saved = SavedModules({})
        self.stacks: dict[tuple[bool, str], Stack] = {}
        self.tasks = list(dict.fromkeys(str(site.coordinates.get("task", "")) for site in adapter.sites))
        self.task = self.tasks[0]
        self.hooks: dict[str, Hook] = {}  # by the path of the weight, and of each block of one
        self.handles: list[RemovableHandle] = []
        self.weights: dict[str, Weight] = {}
        self.folded: list[Weight] = []  # those whose update goes into the weight and not into the module's output
        self.host: tuple[nn.Module, ...] = ()  # a tuple: as an attribute, the host would be a child of its child
        self.host_flags: list[tuple[nn.Parameter, bool]] = []
        self.factors = Factors()
        self.start = Factors()
        for key, slot in adapter.slots.items():
            plant(self.factors, key, params[key], trainable=slot.factor.trainable)
        for key, value in drawn_starts(adapter).items():
            start = torch.from_numpy(value).to(params[key].dtype)
            plant(self.start, key, start, trainable=False, persistent=False)

    @property
    def spec(self) -> AdapterSpec:
        """The spec of the adapter."""
        return self.adapter.spec

    @property
    def active(self) -> bool:
        """Whether the sites add their updates: switched on, and not merged into the weights."""
        return self.enabled and self.merged is None

    def forward(self, x: Any) -> Any:
        """The input. A root that calls all its children, as nn.Sequential does, calls this one too."""
        return x

    def params(self) -> dict[str, Tensor]:
        """Every factor by its name in the core's params: the parameters and buffers themselves, no copies."""
        return {key: getattr(*leaf_of(self.factors, key)) for key in self.adapter.slots}

    @property
    def model(self) -> nn.Module:
        """The host. Raises SiteError when the adapter was detached."""
        if not self.host:
            raise SiteError(
                f"adapter {self.name!r}: was detached, and is on no model.\n"
                "Attach or load it again. (One under PEFT is switched, merged and deleted by PEFT's own methods.)"
            )
        return self.host[0]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it the host computes as if nothing were attached: no update, original modules_to_save.

        Raises SiteError when the adapter is merged, since the weights hold the update then, or detached.
        """
        _ = self.model
        if self.merged is not None:
            raise SiteError(
                f"adapter {self.name!r}: is merged, so its update cannot be left out.\nCall unmerge() first."
            )
        before, self.enabled = self.enabled, False
        if before:
            self.saved.swap()
        try:
            yield
        finally:
            self.enabled = before
            if before and self.host:
                self.saved.swap()

    def set_task(self, task: str) -> None:
        """Use the sites of this task from now on. Raises SiteError for one that the adapter was not made for."""
        if task not in self.tasks:
            raise SiteError(f"task {task!r}: is none of this adapter's.\nIt has {', '.join(self.tasks) or 'none'}.")
        self.task = task

    def delta(self, path: str) -> Tensor:
        """The update of a weight, in float32 or better, in the weight's own layout; of a block, by its site's path.

        Where the sites serve several tasks, that of the present task. Raises SiteError for what is not adapted.
        """
        _ = self.model
        weight = self.weights[path if path in self.weights else self.adapter.find(path)[1].weight]
        stored = weight.parameter
        wide = torch.promote_types(stored.dtype, torch.float32) if stored.is_floating_point() else torch.float32
        update = self.hooks[path].delta(torch.empty((), dtype=wide, device=stored.device))
        return weight.lay(update)

    def merge(self) -> None:
        """Add every update to its weight, in float32 or better, rounded once; all sites or none.

        Raises SiteError for an update that is not finite, a weight that is shared, quantized, or merged already.
        """
        host = self.model
        if self.merged is not None:
            raise SiteError(f"adapter {self.name!r}: is merged already.")
        number = 1 + max((other.merged.number for other in states_of(host) if other.merged), default=0)
        deltas = {path: partial(self.delta, path) for path in self.weights}
        parameters = {path: weight.parameter for path, weight in self.weights.items()}
        self.merged = Merged.write(host, parameters, deltas, number)

    def unmerge(self) -> None:
        """Put the saved weights back, bit for bit.

        Raises SiteError when it is not merged, or when another adapter was merged into its weights later.
        """
        host = self.model
        if self.merged is None:
            raise SiteError(f"adapter {self.name!r}: is not merged.")
        later = [other.name for other in states_of(host) if other.merged and other.merged.is_over(self.merged)]
        if later:
            raise SiteError(f"adapter {self.name!r}: {later[-1]!r} was merged later.\nUnmerge that one first.")
        if self.merged.buried_by:
            raise SiteError(
                f"adapter {self.name!r}: {self.merged.buried_by!r} was merged later and detached; its update stays.\n"
                "The weights from before can no longer be put back."
            )
        self.merged.restore()
        self.merged = None

    def detach(self) -> None:
        """Take the adapter off the host, which is then as before attach. A merged update stays in the weights.

        Raises SiteError when it was detached before.
        """
        host = self.model
        if self.merged is None and self.saved.is_trained:
            self.saved.swap()
        for handle in self.handles:
            handle.remove()
        for weight in self.folded:
            unfold(weight)
        delattr(host, child_name(self.name))
        others = states_of(host)
        for other in others:
            if self.merged and other.merged and self.merged.is_over(other.merged):
                other.merged.buried_by = self.name
        if others:
            for module in self.saved.modules.values():
                module.requires_grad_(False)
        else:
            for parameter, before in self.host_flags:
                parameter.requires_grad_(before)
        self.host, self.handles = (), []

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the adapter's file: its trained factors and its modules_to_save. bfloat16 is stored as float32.

        A frozen factor is stored only if it no longer holds the values of its seed, up to its dtype's rounding.
        """
        extra = {key: to_numpy(value) for key, value in self.saved.values().items()}
        tnadapt.save(self.adapter, stored_factors(self.adapter, self.params()), path, extra=extra)

    def parameter_groups(self, *, lr: float | Mapping[str, float], ratio: float = 1.0) -> list[dict[str, Any]]:
        """Groups for a torch optimizer, one for each trainable factor of the spec, since factors differ in scale.

        Args:
            lr: the learning rate; or a rate for each trainable factor by its name in the spec.
            ratio: factors that start at zero get lr * ratio, the others lr. For LoRA that is the lambda of LoRA+ (Hayou
                et al. 2024, arXiv:2402.12354): B starts at zero and learns faster than A by this ratio.

        Returns:
            For each factor a dict of name, params and lr; then one named "modules_to_save", at lr, where there are any.

        Raises:
            SiteError: a rate that is no positive number, an unknown or a missing name, a ratio that would do nothing.
        """
        return parameter_groups(self.adapter, self.params(), self.saved.values(), lr, ratio)

    def norms(self) -> dict[str, float]:
        """Frobenius norms: of each trainable factor over all groups, by its name in the spec; of "dW" over all sites.

        That of dW is taken through the factors, in float64, for all sites of a group at once; only where the spec is
        centered is each site's dense update made, one at a time.
        """
        return norms(self.adapter, self.params(), self.hooks)

    def save_as_lora(self, directory: str | os.PathLike[str], *, rank: int | None = None) -> dict[str, Written]:
        """Write a folder that PEFT loads as a LoRA, with modules_to_save; exact, or of at most `rank`.

        Returns the rank and the error of each site. Raises as `tnadapt.save_as_lora` does, and SiteError where a module
        that was trained whole shares a parameter with another: PEFT would load its values into a copy.
        """
        extra = {key: to_numpy(value) for key, value in self.saved.values().items()}
        if pair := find_tie(self.model, extra):
            raise SiteError(
                f"modules_to_save: PEFT loads {pair[0]} into a copy.\n"
                f"However, {pair[1]} is the same parameter here, and was trained with it.\nNothing was written."
            )
        return tnadapt.save_as_lora(
            self.adapter,
            {key: to_numpy(value) for key, value in self.params().items()},
            directory,
            rank=rank,
            base_model=getattr(getattr(self.model, "config", None), "name_or_path", None) or None,
            fan_in_fan_out=any(weight.layout == ("in", "out") for weight in self.weights.values()),
            extra=extra,
            modules_to_save=list(self.saved.modules),
        )

    def print_trainable_parameters(self) -> None:
        """One line: trainable and all parameters of the host, frozen factors included, and their share."""
        host = self.model
        trained = sum(parameter.numel() for parameter in host.parameters() if parameter.requires_grad)
        whole = sum(parameter.numel() for parameter in host.parameters())
        whole += sum(buffer.numel() for buffer in self.factors.buffers())
        print(f"trainable params: {trained:,} || all params: {whole:,} || trainable%: {100 * trained / whole:.4f}")

    def table(self) -> str:
        """What was matched: one line a site."""
        rows = [("path", "layer", "kind", "weight", "module")]
        for site in self.adapter.sites:
            module = type(self.weights[site.weight].module).__name__
            weight = " x ".join(map(str, site.shape))
            rows.append((site.path, str(site.coordinates["layer"]), str(site.coordinates["kind"]), weight, module))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *([self.adapter.sharing] if self.adapter.sharing else [])])

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


def host_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules of a model by path, but for adapters that are on it and what they hold."""
    inside = {id(module) for state in model.modules() if isinstance(state, AdapterState) for module in state.modules()}
    return {path: module for path, module in model.named_modules() if id(module) not in inside}
