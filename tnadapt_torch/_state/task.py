"""The task of a model in PEFT's words, and the head that PEFT's class for the task loads from a checkpoint."""

from collections.abc import Collection

from torch import nn

from tnadapt import SiteError
from tnadapt_torch._host import find_tie

__all__: list[str] = []

TASKS = {  # the end of the name of a model's class -> PEFT's word for its task
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "MarianMTModel": "SEQ_2_SEQ_LM",
    "EncoderDecoderModel": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "PreTrainedModel": "",  # the base of all classes, of those with other heads too
    "Model": "FEATURE_EXTRACTION",
}
HEADS = {  # task -> ends of the paths of modules that PEFT trains in full for it, asked or not
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def task_of(model: nn.Module) -> str | None:
    """Return PEFT's word for the task of a model of transformers, told by its class; None for any other model.

    PEFT's classes for tasks pass token ids, so a model that reads anything else has no task here.
    """
    if getattr(model, "main_input_name", None) != "input_ids":
        return None
    for name in (one.__name__ for one in type(model).__mro__):
        task = next((task for end, task in TASKS.items() if name.endswith(end)), None)
        if task is not None:
            is_pair = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
            return task if task and (task != "SEQ_2_SEQ_LM" or is_pair) else None
    return None


def find_task(
    model: nn.Module, asked: str | None, adapted: Collection[str], saved: Collection[str]
) -> tuple[str | None, dict[str, nn.Module]]:
    """Return the task for a checkpoint, and the heads of the model that it must hold beside the saved modules.

    Args:
        model: the host.
        asked: the task that was asked for; by default it is told by the class of the model.
        adapted: the paths of the adapted weights.
        saved: the paths of the modules that are trained in full.

    Raises:
        SiteError: the task was asked for, but its head is adapted, or shares a parameter with another module. Without
            asking, the checkpoint then has no task.
    """
    task = asked or task_of(model)
    ends = HEADS.get(task or "", ())
    found = [path for path, _ in model.named_modules() if path.endswith(ends)] if ends else []
    heads = {path: model.get_submodule(path) for path in found if not _lies_in(path, {*saved, *found} - {path})}
    heads = {path: module for path, module in heads.items() if path not in saved}
    odd = [path for path in adapted if _lies_in(path, heads)]
    names = {f"{path}.{name}" for path, module in heads.items() for name, _ in module.named_parameters()}
    if not odd and not find_tie(model, names):
        return task, heads
    if asked is None:
        return None, {}
    came = f"an adapter on {odd[0]}" if odd else "one that shares a parameter with another module"
    raise SiteError(
        f"save_as_lora: expected a model whose head PEFT can load for {asked}, got {came}.\n"
        "Leave task_type out, or train the head in full, as modules_to_save. Nothing was written."
    )


def _lies_in(path: str, modules: Collection[str]) -> bool:
    return any(path == module or path.startswith(f"{module}.") for module in modules)
