"""The state of an attached adapter: a module that owns every factor once, and the methods that users call."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tnadapt import Adapter, AdapterSpec, SiteError
from tnadapt.binding import StepSize, Written
from tnadapt_torch._host import (
    Flags,
    Merged,
    Removable,
    SavedModules,
    Weight,
    check_folded,
    check_unfoldable,
    loss_of,
    speed_up,
    unfold,
)
from tnadapt_torch._run import Siblings, Stack, Update
from tnadapt_torch._sharded import reshard
from tnadapt_torch._state.checkpoint import Run
from tnadapt_torch._state.factors import Factors, leaf_of, plant, spare, start_of, wide_magnitudes
from tnadapt_torch._state.fixed import Fixable
from tnadapt_torch._state.groups import Optimized
from tnadapt_torch._state.known import (
    check_apart,
    check_latest,
    check_unread,
    enter,
    leave,
    served_by_others,
    states_of,
)
from tnadapt_torch._state.marks import MERGED, ORIGINAL, marks_of
from tnadapt_torch._state.replicas import own_factors, settle
from tnadapt_torch._state.report import Readable
from tnadapt_torch._state.resize import Resizable
from tnadapt_torch._state.store import write_file, write_lora
from tnadapt_torch._state.updates import follow

__all__ = ["AdapterState"]


class AdapterState(Optimized, Resizable, Readable, Fixable):
    """An attached adapter. The trainable factors are its parameters and the frozen factors its buffers, each held once.

    `attach` and `load` create it. Called as a module, it returns its input: a container may call all its children.
    """

    def __init__(self, adapter: Adapter, params: Mapping[str, Tensor], *, name: str, dropout: float) -> None:
        """Register the factors; store the adapter, its name on the host, and the dropout on the input of each site."""
        super().__init__()
        self.adapter = adapter
        self.name, self.dropout = name, dropout
        self.enabled = True
        self.blocks = 0  # of `disabled()` that are open; they end in any order
        self.merged: Merged | None = None
        self.originals: dict[str, Tensor] = {}  # under PEFT, whose layers merge: the weights from before, by path
        self.saved = SavedModules({})
        self.stacks: dict[str, Stack] = {}
        self.tasks = list(dict.fromkeys(str(site.coordinates.get("task", "")) for site in adapter.sites))
        self.task = self.tasks[0]
        self.updates: dict[str, Update] = {}  # by the path of each weight and of each block
        self.siblings: dict[tuple[str, int], Siblings] = {}  # layers that may read the same x, by parent and width
        self.handles: list[Removable] = []  # what serves the modules of the host
        self.watch: Removable | None = None
        self.run: Run | None = None  # whose checkpoints hold what is trained alone
        self.is_step_told = False
        self.steps: tuple[Adapter, Mapping[str, StepSize]] | None = None  # sizes of first steps, for logs
        self.weights: dict[str, Weight] = {}
        self.folded: dict[str, Weight] = {}  # weights that take the update themselves, instead of their module's output
        self.turn = 0  # the position of the attach among those on the host; a copy keeps it
        self.host: tuple[nn.Module, ...] = ()  # no module attribute: the host would be a child of its own child
        self.flags = Flags()
        self.factors, self.start = Factors(), Factors()
        for key, slot in adapter.slots.items():
            plant(self.factors, key, params[key], trainable=slot.factor.trainable)
        for key, value in start_of(adapter, params).items():
            plant(self.start, key, value, trainable=False, persistent=False)

    @property
    def spec(self) -> AdapterSpec:
        """The spec of the adapter."""
        return self.adapter.spec

    @property
    def child_name(self) -> str:
        """The name of this module among the children of its host."""
        return f"tnadapt_{self.name}"

    @property
    def active(self) -> bool:
        """Whether the sites add their updates: the adapter is enabled and not merged."""
        return self.enabled and self.merged is None

    @property
    def original_modules(self) -> bool:
        """Whether the host holds the originals. torch.distributed.checkpoint looks up each key of a state dict so."""
        return not self.saved.is_trained

    def forward(self, x: Any) -> Any:
        """Return the input. A model that calls all its children, such as nn.Sequential, calls this one too."""
        return x

    def params(self) -> dict[str, Tensor]:
        """Return every factor by its name in the core: the parameters and buffers themselves, not copies."""
        return {key: getattr(*leaf_of(self.factors, key)) for key in self.adapter.slots}

    @property
    def model(self) -> nn.Module:
        """The host. Raises SiteError if the adapter is detached."""
        if not self.host:
            came, todo = "a detached one", "Attach or load it again."
            if not self.turn:
                came = "one under PEFT"
                todo = "PEFT's methods switch, merge and delete it. For all else, load its file onto the plain model: "
                todo += "state.save(path), then tnadapt_torch.load(model, path)."
            raise SiteError(
                f"adapter {self.name!r}: expected an adapter that is attached to a model, got {came}.\n{todo}"
            )
        return self.host[0]

    def __dir__(self) -> list[str]:
        """Return the names of the attributes that can be read now: tools such as torch.jit read them all."""
        return [name for name in super().__dir__() if self.host or name != "model"]  # type: ignore[no-untyped-call]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Disable the adapter in a `with` block: no update, and the original modules_to_save.

        Raises:
            SiteError: the adapter is merged or detached; or modules_to_save changed, are offloaded, or are held by
                fully_shard while gradients are enabled.
        """
        _ = self.model
        check_apart(self)
        if self.enabled:
            self.saved.check(self.model)
            self.saved.check_swap(gradients=torch.is_grad_enabled())
            self.saved.swap()
        is_counted = self.enabled or self.blocks > 0  # not if the user had set `enabled` to False before
        self.blocks, self.enabled = self.blocks + is_counted, False
        try:
            yield
        finally:
            self.blocks -= is_counted
            self.enabled = is_counted and not self.blocks
            if self.enabled and self.host:
                self.saved.swap()

    def set_task(self, task: str) -> None:
        """Use the sites of this task from now on.

        Raises:
            SiteError: the adapter does not have this task, or the update of another task is merged.
        """
        if task not in self.tasks:
            raise SiteError(
                f"task: expected one of this adapter's tasks ({', '.join(self.tasks) or 'none'}), got {task!r}."
            )
        if self.merged is not None and task != self.task:
            raise SiteError(
                f"task: expected an adapter that is not merged, got one with task {self.task!r} in the weights.\n"
                f"Call unmerge(), set_task({task!r}) and merge()."
            )
        self.task = task

    def delta(self, path: str) -> Tensor:
        """Return the update of a weight or a block, in float32 or better and in the stored layout of the weight.

        Args:
            path: the path of an adapted weight, for its update in the current task, or of the site of a block.

        Raises:
            SiteError: the adapter does not adapt this path, or it is detached.
        """
        _ = self.model
        settle(self)
        name = path if path in self.weights else self.adapter.find(path)[1].weight
        self.check_host(name)
        return self._update_of(path, self.weights[name])

    def _update_of(self, path: str, weight: Weight) -> Tensor:
        like = weight.like
        if like.is_meta:
            like = torch.empty_like(like, device=next(iter(self.params().values())).device)
        return weight.lay(self.updates[path].delta(like))

    def merge(self) -> None:
        """Add every update to its weight, in float32 or better and rounded once. A merge that fails changes no weight.

        Raises:
            SiteError: a merged weight is not finite, a weight is shared or quantized, or the adapter is already merged.
        """
        deltas = self._mergeable()
        number = 1 + max((other.merged.number for other in states_of(self.model) if other.merged), default=0)
        self.merged = Merged.write(self.model, self.weights, deltas, number)

    def merge_loss(self) -> dict[str, float]:
        """Return for each adapted weight the part of its update that `merge` would round away, relative to the update.

        It is |rounded - exact| / |update|, in Frobenius norms: 0.001 is harmless, and at 1 nothing of the update is
        left. An update that is 0 loses 0. An adapter that is not merged has no such loss, unless it runs in the weight
        (see `explain`). No weight is changed.

        Raises:
            SiteError: as `merge` raises it.
        """
        deltas = self._mergeable()
        return loss_of(self.model, self.weights, deltas)

    def _mergeable(self) -> dict[str, Callable[[], Tensor]]:
        """Return for each weight the function that computes its update, if they can be merged now."""
        check_apart(self)
        settle(self)
        self.check_host()
        check_unread(self, states_of(self.model))
        return {path: partial(self._update_of, path, weight) for path, weight in self.weights.items()}

    def unmerge(self) -> None:
        """Restore the weights from before the merge, bit for bit.

        Raises:
            SiteError: the adapter is not merged, or another adapter was merged into its weights later.
        """
        _ = self.model
        if self.merged is None:
            raise SiteError(f"adapter {self.name!r}: expected a merged adapter, got one that is not merged.")
        check_latest(self, self.merged)
        self.check_host()
        self.merged.restore()
        self.merged = None

    def detach(self) -> None:
        """Remove the adapter from the host and restore the host. A merged update stays in the weights.

        Raises:
            SiteError: the adapter is already detached, or fully_shard holds weights that updates are folded into.
        """
        host = self.model
        reshard([host])
        check_unfoldable(self.folded)
        self.saved.check_swap(gradients=False)
        if self.merged is None and self.saved.is_trained:
            self.saved.swap()
        self.release()
        self.flags.restore(host, leave(self))
        self.host = ()
        own_factors(self)

    def release(self) -> None:
        """Take the updates of this adapter off the modules of the host."""
        self.end_watch()
        for handle in self.handles:
            handle.remove()
        for path, weight in self.folded.items():
            unfold(weight, self.updates[path])
        speed_up(self.model, served_by_others(self))
        self.handles, self.folded = [], {}

    def end_watch(self) -> None:
        """Stop waiting for the first training forward."""
        if self.watch is not None:
            self.watch.remove()
            self.watch = None

    def check_host(self, *paths: str) -> None:
        """Raise SiteError unless the host has these adapted weights, or all it had at attach, where they were.

        Those that the adapter reads have to have values.
        """
        host = self.model
        for path in paths or self.weights:
            self.weights[path].check(host, self.adapter.weights[path][0].weight_shape)
            if self.adapter.hosts and self.weights[path].like.is_meta:
                raise SiteError(
                    f"{path}: expected a weight with values, got one on the meta device, as offloaded weights are.\n"
                    "The adapter reads it. Call accelerate.hooks.remove_hook_from_submodules(model) first."
                )
        if not paths:
            check_folded(self.folded, self.updates)
            self.saved.check(host)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the trained factors and the modules_to_save to a file. bfloat16 is stored as float32.

        A frozen factor is stored only if it differs from the values of its seed by more than the rounding of its dtype.
        Raises FormatError for a starting value of a centered spec that differs so: it is not stored.

        If processes share the host by fully_shard or tensor parallelism, call this on each. The first one writes.
        """
        write_file(self, path)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield the trainable factors, each once. Under fully_shard these are shards: gathered copies train nothing."""
        reshard([self, *self.host])
        return super().parameters(recurse)

    def save_as_lora(
        self, directory: str | os.PathLike[str], *, rank: int | None = None, task_type: str | None = None
    ) -> dict[str, Written]:
        """Save the adapter and its modules_to_save as a LoRA in a folder that PEFT can load.

        Args:
            directory: the folder to write.
            rank: the highest rank allowed; by default the LoRA is exact.
            task_type: as for `tnadapt.save_as_lora`; by default told by the class of a model of transformers.

        Returns:
            The rank and the error of each site.

        Raises:
            SiteError: a module of modules_to_save shares a parameter with another module, so that PEFT would load its
                values into a copy; or the adapter is detached.
            TnadaptError: as `tnadapt.save_as_lora` raises it.
        """
        return write_lora(self, directory, rank, task_type)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + key: value for key, value in marks_of(self).items()})

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        marks = {prefix + MERGED, prefix + ORIGINAL}  # `MarksCheck` on the host has read them
        plain = {key: value for key, value in state_dict.items() if key not in marks}
        super()._load_from_state_dict(plain, prefix, *rest)

    def _apply(self, fn: Any, recurse: bool = True) -> "AdapterState":
        for stack in self.stacks.values():
            stack.forget()
        self.forget_products()
        with wide_magnitudes(self.adapter, self.factors):
            super()._apply(spare(fn), recurse)  # type: ignore[no-untyped-call]
        follow(self.updates.values())
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | self.outside() | {"run": None}  # a copy is no part of the run

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        enter(self)
