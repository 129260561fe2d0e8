"""Callbacks for the Trainer of transformers: log the norms of an adapter, step its policies. Needs transformers."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from tnadapt import SiteError
from tnadapt.binding import extra
from tnadapt_torch._state import AdapterState, note_of_step

with extra("peft", "tnadapt_torch.trainer"):
    from accelerate.optimizer import AcceleratedOptimizer  # type: ignore[import-untyped]
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["NormsCallback", "PolicyCallback"]


class Policy(Protocol):
    """A policy of training, such as those of `tnadapt_torch.policies`."""

    def step(self) -> None: ...
    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


class NormsCallback(TrainerCallback):
    """Adds the norm of each trainable factor and of dW to the Trainer's logs, as "norm_A" and "norm_dW".

    The norms are added to `trainer.state.log_history` and are passed to later callbacks. For the Trainer's own
    reporters to receive them, make this the first callback:
    `trainer.callback_handler.callbacks.insert(0, NormsCallback(state))`.

    Warns once at the start of training if the first step is more than 8 times that of a LoRA at the same rate.
    """

    def __init__(self, adapter: AdapterState) -> None:
        """Store the adapter's state, which `attach`, `load` or `peft_model.base_model.states()` returned."""
        self.adapter = adapter

    def on_train_begin(  # type: ignore[override]  # named here: all that **kwargs of the base class can hold
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: object = None,
        processing_class: object = None,
        optimizer: torch.optim.Optimizer | None = None,
        lr_scheduler: object = None,
        train_dataloader: object = None,
        eval_dataloader: object = None,
    ) -> None:
        """Warn, once for each adapter, if its first step is large."""
        note = note_of_step(self.adapter, getattr(optimizer, "param_groups", []))
        if note and state.is_world_process_zero:
            warnings.warn(note, stacklevel=2)

    def on_log(  # type: ignore[override]  # named here: all that **kwargs of the base class can hold
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: dict[str, float],
        model: object = None,
        processing_class: object = None,
        optimizer: object = None,
        lr_scheduler: object = None,
        train_dataloader: object = None,
        eval_dataloader: object = None,
    ) -> None:
        """Add the norms to the logs. The Trainer passes all of these arguments by name."""
        norms = {f"norm_{name}": norm for name, norm in self.adapter.norms().items()}
        logs.update(norms)
        state.log_history[-1].update(norms)


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

    def on_train_begin(  # type: ignore[override]  # named here: all that **kwargs of the base class can hold
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: object = None,
        processing_class: object = None,
        optimizer: object = None,
        lr_scheduler: object = None,
        train_dataloader: object = None,
        eval_dataloader: object = None,
    ) -> None:
        """Load the policy's state if the run is resumed. Raises SiteError if the checkpoint has none."""
        if state.global_step:
            self._load(self._folder(args, state))

    def on_train_end(  # type: ignore[override]
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: object = None,
        processing_class: object = None,
        optimizer: object = None,
        lr_scheduler: object = None,
        train_dataloader: object = None,
        eval_dataloader: object = None,
    ) -> None:
        """Load the policy's state of the best checkpoint, if the Trainer has loaded its model."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load(Path(state.best_model_checkpoint))

    def on_optimizer_step(  # type: ignore[override]
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: object = None,
        processing_class: object = None,
        optimizer: object = None,
        lr_scheduler: object = None,
        train_dataloader: object = None,
        eval_dataloader: object = None,
    ) -> None:
        """Step the policy. The Trainer calls this after optimizer.step() and before zero_grad()."""
        if isinstance(optimizer, AcceleratedOptimizer) and optimizer.step_was_skipped:
            return
        self.policy.step()

    def on_save(  # type: ignore[override]
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: object = None,
        processing_class: object = None,
        optimizer: object = None,
        lr_scheduler: object = None,
        train_dataloader: object = None,
        eval_dataloader: object = None,
    ) -> None:
        """Save the policy's state in the checkpoint."""
        found = dict(self.policy.state_dict())  # on all processes: they may share the factors
        if state.is_world_process_zero:
            torch.save(found, self._folder(args, state) / self._file)

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

    def _folder(self, args: TrainingArguments, state: TrainerState) -> Path:
        return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
