"""PEFT's own tests with rows of our method. Only `suite.py` collects this file; none of PEFT's code is copied here.

Where a test of PEFT has rows, one row per method, they are replaced by rows for each spec below. Tests without such
rows are about one method of PEFT and are not collected. Models that PEFT's tests fetch from the hub are replaced by
small ones made from configs.
"""

import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
import transformers

from tests.peft.models import OWN, bart, bert, gpt2, llama
from tnadapt import AdapterSpec, TnadaptError, families
from tnadapt_torch.peft import TnConfig, TnModel

PACKAGE = "peft_tests"
SPECS: dict[str, tuple[AdapterSpec, dict[str, Any]]] = {
    "lora": (families.lora(), {"rank": 2}),
    "lotr": (families.lotr(), {"rank": {"p": 2, "q": 3}}),
    "lorta": (families.lorta(), {"rank": 3, "sizes": {"head": 1}}),
    "vera": (families.vera(), {"rank": 5}),
    "tera": (families.tera(out_order=2, in_order=2), {"rank": 3}),
    "lokr": (families.lokr(), {"rank": 2}),
    "own": (OWN, {"rank": 3}),
}
TARGETS = [
    ("MLP", {"target_modules": "lin0"}),
    ("MLP", {"target_modules": ["lin0"]}),
    ("MLP", {"target_modules": ["lin1"]}),
    ("MLP", {"target_modules": ["lin0", "lin1"]}),
    ("MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("EmbConv1D", {"target_modules": ["conv1d"]}),
]
TASKS = {  # a file of tests of models from the hub -> the task, and the models in their place by name
    # (PEFT's tests leave out what they do not support by words such as "llama" and "gpt2" in the names)
    "test_decoder_models": ("CAUSAL_LM", {"linear": llama, "conv1d": gpt2}),
    "test_encoder_decoder_models": ("SEQ_2_SEQ_LM", {"pair": bart}),
    "test_feature_extraction_models": ("FEATURE_EXTRACTION", {"encoder": bert}),
    "test_seq_classifier": ("SEQ_CLS", {"encoder": bert}),
}
PAIRS = {
    "same": ({"target_modules": ["lin0"]}, {"target_modules": ["lin0"]}),
    "different": ({"target_modules": ["lin0"]}, {"target_modules": ["lin1"]}),
}
SUMMED = ("lora", "lotr", "lorta")  # PEFT's tests of method "lora" also add two adapters up
UNUSED = {"diffusers": "StableDiffusionPipeline", "datasets": "load_dataset"}  # package -> what is imported from it
COPIED = ("target_modules", "modules_to_save")  # what a row of ours takes from a row of LoRA
ALPHA = {  # for tests in which an update diverges or hardly moves; PEFT gives some methods other learning rates there
    "test_mixed_adapter_batches": 20.0,
    "test_parameters_after_loading_model": 1e-3,
    "test_only_params_are_updated": 8.0,
}
WORDS = {  # a part of the message that a test expects -> the message here
    "same as the number of inputs": "^adapter_names: expected one name per row, got ",
    "in training mode": "^adapter_names: expected a model in evaluation mode",
    "merged adapters": "^adapter_names: expected a model without merged adapters",
    "infer": "^adapter_names: expected names of this model's adapters",
    "NaNs detected": "expected a finite sum of weight and update, got NaN or infinity",
}


class Tested(TnConfig):
    """A config as PEFT's tests write it: one class per method, and `init_weights`."""

    spec_name = ""

    def __init__(self, *, init_weights: bool = True, **words: Any) -> None:
        spec, sizes = SPECS[self.spec_name]
        super().__init__(**{"spec": spec, "overparametrized": True} | sizes | words)
        self.init_weights = init_weights


CLASSES = [type(f"{name}_config", (Tested,), {"spec_name": name}) for name in SPECS]


def wake_up(tuner: TnModel, model: torch.nn.Module, name: str) -> Any:
    """Make the state of an adapter, with random values in its factors if its config says init_weights=False."""
    state = new_state(tuner, model, name)
    if not getattr(tuner.peft_config[name], "init_weights", True):
        with torch.no_grad():
            for parameter in state.parameters():
                parameter.normal_(0.0, 0.3)
    return state


new_state, TnModel._new_state = TnModel._new_state, wake_up


class Ours(type):
    """The class of a class that equals each of our configs, for the tests that ask for one by `==` or `in`."""

    def __eq__(cls, other: object) -> bool:
        return other in CLASSES

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def taken_for_lora(request, monkeypatch):
    """Let the tests of mixed batches, which are for LoRA alone, run for our configs."""
    if "mixed_adapter_batches" in request.node.name:
        for module in MODULES:
            monkeypatch.setattr(module, "LoraConfig", Ours("LoraConfig", (), {}))


class Wording:
    """pytest, as PEFT's tests see it: where they expect a message of PEFT that is worded otherwise here, ours is."""

    def raises(self, error: Any, *, match: str | None = None) -> Any:
        for part, ours in WORDS.items():
            if part in (match or ""):
                return pytest.raises(TnadaptError, match=ours)
        return pytest.raises(error, match=match)

    def __getattr__(self, name: str) -> Any:
        return getattr(pytest, name)


def load_peft_tests(*names: str) -> list[ModuleType]:
    """Import modules of PEFT's tests. They also import two packages of which the tests that run here use nothing."""
    assert transformers.Trainer  # imported before the stand-ins, since it looks for the same packages
    absent = [name for name in UNUSED if importlib.util.find_spec(name) is None]
    for name in absent:
        sys.modules[name] = ModuleType(name)
        setattr(sys.modules[name], UNUSED[name], type(UNUSED[name], (), {}))
    package = ModuleType(PACKAGE)
    package.__path__ = [os.environ["PEFT_TESTS"]]
    sys.modules[PACKAGE] = package
    pytest.register_assert_rewrite(*(f"{PACKAGE}.{name}" for name in (*names, "testing_common")))
    modules = [importlib.import_module(f"{PACKAGE}.{name}") for name in (*names, "testing_common")]
    for name in absent:
        del sys.modules[name]
    for module in modules:
        module.pytest = Wording()
        module.hub_online_once = nullcontext
    return modules


def file_of(function: Any) -> str:
    """Return the name of the file of a test."""
    return function.__module__.rpartition(".")[2]


def small_models(file: str) -> list[Any]:
    """Save the small models for a file of tests; return their paths in place of names on the hub."""
    folder = Path(os.environ["PEFT_MODELS"])
    made = TASKS[file][1]
    for name, make in made.items():
        if not (folder / name).exists():
            make().save_pretrained(folder / name)
    return [pytest.param(str(folder / name), id=name) for name in made]


def rows_of(function: Any, names: str, rows: list[Any]) -> list[Any] | None:
    """Return our rows for those of a parametrized test, or None if its rows are not one per method."""
    more = {"alpha": ALPHA[function.__name__]} if function.__name__ in ALPHA else {}
    match names.replace(" ", "").split(","):
        case ["test_name", "model_id", "config_cls", "config_kwargs"]:
            return [
                (f"{made.spec_name} {number}", model, made, words | more)
                for made in CLASSES
                for number, (model, words) in enumerate(TARGETS, 1)
            ]
        case ["config_cls", "config_kwargs"]:
            words = {"task_type": TASKS[file_of(function)][0], "target_modules": None} | more
            return [pytest.param(made, words, id=made.spec_name) for made in CLASSES]
        case ["config_cls"]:
            return CLASSES
        case ["test_name", "tuner_method", "config_cls", *_]:
            awake = {"init_weights": False}
            return [
                (f"{made.spec_name} {name}", "lora" if made.spec_name in SUMMED else "", made, one | awake, two | awake)
                for made in CLASSES
                for name, (one, two) in PAIRS.items()
            ]
        case ["test_name", "config" | "config0", *_]:
            first = next(row for row in rows if isinstance(row[1], peft.LoraConfig))
            return [(f"{made.spec_name} {first[0]}", *(ours(made, each) for each in first[1:])) for made in CLASSES]
    return None


def ours(made: type[Tested], config: Any) -> Any:
    """Make a config of ours from one of LoRA; anything else in a row stays."""
    if not isinstance(config, peft.LoraConfig):
        return config
    return made(init_weights=False, **{name: getattr(config, name) for name in COPIED})


def collected(module: ModuleType) -> Iterator[tuple[str, type]]:
    """Replace the rows of all test classes, and yield the classes without the tests that have no such rows."""
    for name, made in inspect.getmembers(module, inspect.isclass):
        if not name.startswith("Test") or made.__module__ != module.__name__:
            continue
        for test, function in inspect.getmembers(made, inspect.isfunction):
            if test.startswith("test_") and not replace_rows(function):
                setattr(made, test, None)
                NOT_COLLECTED.append(test)
        yield name, made


def replace_rows(function: Any) -> bool:
    """Replace the rows of one test. Return whether it has rows that are one per method."""
    marks = getattr(function, "pytestmark", [])
    found = False
    for number, mark in enumerate(marks):
        if mark.name != "parametrize":
            continue
        if mark.args[0] == "model_id":
            marks[number] = pytest.mark.parametrize("model_id", small_models(file_of(function))).mark
        elif (rows := rows_of(function, *mark.args[:2])) is not None:
            marks[number] = pytest.mark.parametrize(mark.args[0], rows).mark
            found = True
    return found


NOT_COLLECTED: list[str] = []  # the tests without rows that are one per method
MODULES = load_peft_tests("test_custom_models", *TASKS)
for tests in MODULES:
    globals().update(collected(tests))
