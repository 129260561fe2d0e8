"""Callbacks for the Trainer of transformers: what it logs, policies, checkpoints. Needs transformers."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack

import torch

from tnadapt import AdapterSpec, SiteError, TnadaptError
from tnadapt.binding import extra, mistake, read_checkpoint, told
from tnadapt_torch._host import unwrapped
from tnadapt_torch._state import AdapterState, Run, note_of_step, shared_by

with extra("peft", "tnadapt_torch.trainer"):
    from accelerate.optimizer import AcceleratedOptimizer  # type: ignore[import-untyped]
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["CheckpointCallback", "LogCallback", "NormsCallback", "PolicyCallback"]


class Policy(Protocol):
    """A policy of training, such as those of `tnadapt_torch.policies`."""

    def step(self) -> None: ...
    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


class Parts(TypedDict, total=False):
    """The parts of a run that the Trainer passes to each callback by name."""

    model: torch.nn.Module
    processing_class: object
    optimizer: torch.optim.Optimizer | None
    lr_scheduler: object
    train_dataloader: object
    eval_dataloader: object


class NormsCallback(TrainerCallback):
    """Adds the norm of each trainable factor and of dW to the Trainer's logs, as "norm_A" and "norm_dW".

    The norms are added to `trainer.state.log_history` and are passed to later callbacks. For the Trainer's own
    reporters to receive them, make this the first callback:
    `trainer.callback_handler.callbacks.insert(0, NormsCallback(state))`.

    Warns once at the start of training if the first step is more than 8 times that of a LoRA at the same rate.
    """

    def __init__(self, adapter: AdapterState) -> None:
        """Store the adapter's state, which `attach`, `load` or `peft_model.base_model.states()` returned."""
        self.adapter = _expect_state(adapter, type(self).__name__)

    def on_train_begin(  # type: ignore[override]  # the base class takes any arguments
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **run: Unpack[Parts]
    ) -> None:
        """Warn, once for each adapter, if its first step is large."""
        note = note_of_step(self.adapter, getattr(run.get("optimizer"), "param_groups", []))
        if note and state.is_world_process_zero:
            warnings.warn(note, stacklevel=2)

    def on_log(  # type: ignore[override]
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: dict[str, float],
        **run: Unpack[Parts],
    ) -> None:
        """Add the norms to the logs. The Trainer passes all of these arguments by name."""
        norms = {f"norm_{name}": norm for name, norm in self.adapter.norms().items()}
        logs.update(norms)
        state.log_history[-1].update(norms)


class LogCallback(TrainerCallback):
    """Adds `state.log(optimizer)` to the lines of training in the Trainer's logs.

    The numbers of a line are those of its step, with the gradients that the optimizer took. Other steps cost nothing.
    If logs follow epochs instead of steps, they lack the gradients, which the Trainer has set to zero by then.

    For the Trainer's own reporters to receive them, make this the first callback:
    `trainer.callback_handler.callbacks.insert(0, LogCallback(state))`.
    """

    def __init__(self, adapter: AdapterState, *, by_group: bool = False) -> None:
        """Store the adapter's state, and whether to log each group of the adapter, as for `AdapterState.log`."""
        self.adapter, self.by_group = _expect_state(adapter, type(self).__name__), by_group
        self.found: tuple[int, dict[str, float]] = (-1, {})  # a step, and its numbers

    def on_optimizer_step(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **run: Unpack[Parts]
    ) -> None:
        """Read the numbers if this step will be logged: the Trainer sets the gradients to zero before it logs."""
        step = state.global_step + 1
        is_first = args.logging_first_step and step == 1
        if args.logging_strategy == "steps" and (is_first or step % state.logging_steps == 0):
            self.found = step, self.adapter.log(run.get("optimizer"), by_group=self.by_group)

    def on_log(  # type: ignore[override]
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: dict[str, float],
        **run: Unpack[Parts],
    ) -> None:
        """Add the numbers to a line of training."""
        if "loss" not in logs:
            return
        step, found = self.found
        if step != state.global_step:
            found = self.adapter.log(run.get("optimizer"), by_group=self.by_group)
        self.found = (-1, {})  # a later run has a step of this number, too
        logs.update(found)
        state.log_history[-1].update(found)


class CheckpointCallback(TrainerCallback):
    """Lets each checkpoint of the Trainer hold what is trained, and not the frozen weights of the model.

    The checkpoint has model.safetensors, with the factors, the modules_to_save, all buffers and all else that changes
    in training, from which the Trainer resumes a run and loads the best model; and tnadapt_<adapter_name>.safetensors,
    which `tnadapt_torch.load` takes. To resume, load the base model and attach with the same arguments.

    Checkpoints stay whole while an adapter is merged, where processes share the model by fully_shard or tensor
    parallelism, if the Trainer uploads them, in a folder with the config.json of an earlier run, and of a model that is
    not one of transformers. They have the file of the adapter, too, unless it is merged.
    """

    def __init__(self, adapter: AdapterState) -> None:
        """Store the adapter's state, which `attach` or `load` returned for the model of the Trainer."""
        self.adapter = _expect_state(adapter, type(self).__name__)

    def on_train_begin(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **run: Unpack[Parts]
    ) -> None:
        """Name the folder of the run. Raises SiteError for an adapter that is not attached to the Trainer's model.

        Warns if the checkpoint of a resumed run has the adapter with another spec.
        """
        if not self.adapter.host or unwrapped(run["model"]) is not self.adapter.model:
            raise SiteError(
                f"CheckpointCallback: expected an adapter that is attached to the model of the Trainer, got "
                f"{self.adapter.name!r}, which is not.\n"
                "Attach to the model itself, not to a part of it. Under PEFT the checkpoints hold the adapter alone "
                "without it: leave this callback out."
            )
        is_uploaded = args.push_to_hub and args.hub_strategy != "end"
        self.adapter.run = Run(Path(str(args.output_dir)), state, is_uploaded=is_uploaded)
        path = _checkpoint(args, state) / f"{self.adapter.child_name}.safetensors"
        if state.global_step and not _has_spec(path, self.adapter.spec):
            warnings.warn(
                f"CheckpointCallback: expected the spec that {path} was saved with, got another one, such as one with "
                f"another alpha.\nThe factors that were loaded have another update with it: call "
                "print(tnadapt.load(path)[0]) and attach with that spec.",
                stacklevel=2,
            )

    def on_save(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **run: Unpack[Parts]
    ) -> None:
        """Save the adapter where `save_pretrained` of the model did not."""
        is_saved = hasattr(self.adapter.model, "save_pretrained") and shared_by(self.adapter) is None
        is_writing = state.is_world_process_zero or shared_by(self.adapter) is not None
        if is_writing and not is_saved and self.adapter.merged is None:
            self.adapter.save(_checkpoint(args, state) / f"{self.adapter.child_name}.safetensors")

    def on_train_end(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **run: Unpack[Parts]
    ) -> None:
        """Let later saves of the model be whole again."""
        self.adapter.run = None

    def on_push_begin(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **run: Unpack[Parts]
    ) -> None:
        """Save the adapter beside the model that the Trainer copies from a checkpoint and uploads."""
        if state.is_world_process_zero and shared_by(self.adapter) is None and self.adapter.merged is None:
            self.adapter.save(Path(str(args.output_dir)) / f"{self.adapter.child_name}.safetensors")


class PolicyCallback(TrainerCallback):
    """Calls `policy.step()` after each step of the Trainer's optimizer, while the gradients are there.

    A step that the scaler of float16 skipped is none. The state of the policy is saved in each checkpoint, as
    tnadapt_<name>.pt. It is loaded when a run is resumed from a checkpoint in the output folder, and with the best
    model at the end. The Trainer loads values into the shapes that the adapter has, so that for both shapes must stay:
    shapes="keep". Chains, as `Restarts` trains them, keep theirs.
    """

    def __init__(self, policy: Policy, name: str = "policy") -> None:
        """Store the policy, and a name for its file; several policies need several names.

        Make the policy with the optimizer that is passed to the Trainer: `optimizers=(optimizer, None)`.
        """
        self.policy, self.name = policy, name

    def on_train_begin(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **run: Unpack[Parts]
    ) -> None:
        """Load the policy's state if the run is resumed. Raises SiteError if the checkpoint has none."""
        if state.global_step:
            self._load(_checkpoint(args, state))

    def on_train_end(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **run: Unpack[Parts]
    ) -> None:
        """Load the policy's state of the best checkpoint, if the Trainer has loaded its model."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load(Path(state.best_model_checkpoint))

    def on_optimizer_step(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **run: Unpack[Parts]
    ) -> None:
        """Step the policy. The Trainer calls this after optimizer.step() and before zero_grad()."""
        optimizer = run.get("optimizer")
        if isinstance(optimizer, AcceleratedOptimizer) and optimizer.step_was_skipped:
            return
        self.policy.step()

    def on_save(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **run: Unpack[Parts]
    ) -> None:
        """Save the policy's state in the checkpoint."""
        found = dict(self.policy.state_dict())  # on all processes: they may share the factors
        if state.is_world_process_zero:
            torch.save(found, _checkpoint(args, state) / self._file)

    def _load(self, folder: Path) -> None:
        path = folder / self._file
        if not path.exists():
            raise SiteError(
                f"PolicyCallback: expected the state of the policy in {path}, got no file.\n"
                "Copy it there from the checkpoint whose model was loaded."
            )
        self.policy.load_state_dict(torch.load(path, weights_only=True))

    @property
    def _file(self) -> str:
        return f"tnadapt_{self.name}.pt"


def _expect_state(adapter: AdapterState, where: str) -> AdapterState:
    """Return the state of an adapter. Raises SiteError for anything else, such as the model."""
    if not isinstance(adapter, AdapterState):
        todo = "Pass what attach or load returned."
        raise mistake(SiteError, where, "the state of an adapter", told(adapter), todo)
    return adapter


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder of the checkpoint of this step."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _has_spec(path: Path, spec: AdapterSpec) -> bool:
    """Return whether a file has an adapter of a spec, or none that can be read: the Trainer does not need it."""
    try:
        return read_checkpoint(path).adapter.spec == spec
    except (TnadaptError, FileNotFoundError):
        return True
