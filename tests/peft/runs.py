"""Short runs of the Trainer of transformers on a tiny model, and what the tests read of them."""

import warnings

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings from importing PEFT
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments

from tests.peft.models import WORDS, attached, config, llama, wake

STEPS = 4
TEXTS = [
    {"input_ids": row, "labels": row}
    for row in torch.randint(0, WORDS, (24, 6), generator=torch.Generator().manual_seed(0))
]


def model_of(kind, name):
    """Make an adapted model; return it and the state of its adapter."""
    if kind == "attach":
        model = attached(llama(), name)
        return model, model.tnadapt_default
    model = get_peft_model(llama(), config(name))
    state = model.base_model.states()["default"]
    wake(state)
    return model, state


def trainer_of(model, folder, *, callbacks=None, optimizers=(None, None), **more):
    usual = {"max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 0.05, "logging_steps": 1}
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    arguments = TrainingArguments(output_dir=str(folder), **usual | quiet | more)
    return Trainer(
        model, arguments, train_dataset=TEXTS, eval_dataset=TEXTS[:8], callbacks=callbacks, optimizers=optimizers
    )


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def values(state):
    return {name: value.detach().clone() for name, value in state.params().items()}


def close(found, wanted, tolerance):
    for name, value in wanted.items():
        error = (found[name] - value).abs().max().item()
        assert error <= tolerance * max(value.abs().max().item(), 1e-3), f"{name} is off by {error:.3g}"
