"""What transformers' Trainer can be told of an adapter. Needs transformers; a room with a face of its own."""

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tnadapt_torch._state import AdapterState

__all__ = ["NormsCallback"]


class NormsCallback(TrainerCallback):
    """Adds the norm of each trainable factor and of dW to what the Trainer logs, as "norm_A" and "norm_dW".

    They stand in `trainer.state.log_history` and in what the callbacks after this one see; for a reporter of the
    Trainer's own to see them, put this one first: `trainer.callback_handler.callbacks.insert(0, NormsCallback(state))`.
    """

    def __init__(self, adapter: AdapterState) -> None:
        """Args: the adapter's state, from `attach`, `load`, or `peft_model.base_model.states()`."""
        self.adapter = adapter

    def on_log(  # type: ignore[override]  # **kwargs there: all that it can hold is named here
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
        """Add the norms. The Trainer passes every one of these by name."""
        norms = {f"norm_{name}": norm for name, norm in self.adapter.norms().items()}
        logs.update(norms)
        state.log_history[-1].update(norms)
