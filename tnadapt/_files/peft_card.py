"""The model card of a LoRA that is written for PEFT: what it was made from, and how to load it."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__: list[str] = []

CARD = "README.md"
MARK = "<!-- Written by tnadapt, and written anew with the checkpoint. Remove this line to keep your changes. -->"
HUB_NAME = re.compile(r"\w([\w.\-]*\w)?(/\w([\w.\-]*\w)?)?", re.ASCII)
CLASSES = {
    "CAUSAL_LM": "CausalLM",
    "SEQ_2_SEQ_LM": "Seq2SeqLM",
    "SEQ_CLS": "SequenceClassification",
    "TOKEN_CLS": "TokenClassification",
    "QUESTION_ANS": "QuestionAnswering",
    "FEATURE_EXTRACTION": "FeatureExtraction",
}


class Made(NamedTuple):
    """What a LoRA was made from: a few words, and a tag or "" if there is none."""

    words: str
    tag: str


def card_of(config: Mapping[str, Any], made: Made, ranks: Mapping[str, int], errors: Mapping[str, float]) -> str:
    """Return the text of a model card, with the metadata that the Hugging Face Hub reads.

    Args:
        config: the options of PEFT, of which the base model, the task and the trained modules are named.
        made: what the LoRA was made from.
        ranks: the rank of each weight by its path.
        errors: the relative error of the update of each weight.
    """
    base, task = config.get("base_model_name_or_path"), config.get("task_type")
    known = base if isinstance(base, str) and _is_on_hub(base) else None
    low, high, worst = min(ranks.values()), max(ranks.values()), max(errors.values())
    rows = {
        "base model": f"`{known}`" if known else "not named: add it here",
        "made from": made.words,
        "weights": f"{len(ranks):,}",
        "rank": f"{low}" if low == high else f"{low} to {high}",
        "relative error of the updates": "0, up to rounding" if worst == 0 else f"at most {worst:.2g}",
        "task": f"`{task}`" if task else "not named",
    }
    if saved := config.get("modules_to_save"):
        rows["modules in full"] = ", ".join(f"`{name}`" for name in saved)
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"{_metadata(known, task, made)}{MARK}\n\n# LoRA\n\n"
        "The files of this folder are a LoRA in the format of PEFT, written by tnadapt.\n\n"
        f"| | |\n|---|---|\n{table}\n\n{_usage(known, task)}\n"
        "What this card cannot know: the data, the training, the results and the license. Write them here.\n"
    )


def _is_on_hub(base: str) -> bool:
    """Return whether a base model is named as on a hub. A path of this machine tells a stranger nothing."""
    is_name = HUB_NAME.fullmatch(base) is not None and ".." not in base and "--" not in base
    return is_name and not os.path.exists(base)  # noqa: PTH110  (a name may be too long for a path; a folder is taken)


def _metadata(base: str | None, task: str | None, made: Made) -> str:
    lines = [f"base_model: {json.dumps(base)}"] if base else []
    lines += ["library_name: peft"]
    lines += ["pipeline_tag: text-generation"] if task == "CAUSAL_LM" else []
    lines += ["tags:", "- lora", "- tnadapt"] + ([f"- {json.dumps(made.tag)}"] if made.tag not in {"", "lora"} else [])
    return "\n".join(["---", *lines, "---", ""])


def _usage(base: str | None, task: str | None) -> str:
    """Return the lines of Python that load the folder."""
    if base and task in CLASSES:
        name = f"AutoPeftModelFor{CLASSES[task]}"
        lines = [f"from peft import {name}", "", f'model = {name}.from_pretrained("this folder")']
    else:
        lines = ["from peft import PeftModel", "", 'model = PeftModel.from_pretrained(base_model, "this folder")']
    return "\n".join(["```python", *lines, "```", ""])
