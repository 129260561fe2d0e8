"""Callbacks for the Trainer of transformers: log the norms of an adapter during training. Needs transformers."""

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tnadapt_torch._state import AdapterState

__all__ = ["NormsCallback"]


class NormsCallback(TrainerCallback):
    """Adds the norm of each trainable factor and of dW to the Trainer's logs, as "norm_A" and "norm_dW".

    The norms are added to `trainer.state.log_history` and are passed to later callbacks. For the Trainer's own
    reporters to receive them, make this the first callback:
    `trainer.callback_handler.callbacks.insert(0, NormsCallback(state))`.
    """

    def __init__(self, adapter: AdapterState) -> None:
        """Store the adapter's state, which `attach`, `load` or `peft_model.base_model.states()` returned."""
        self.adapter = adapter

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
