"""The tests of custom models in PEFT's source distribution, with rows of our method. Only `suite.py` collects this file.

None of PEFT's code is copied here. Where one of its tests has rows, one row per method, they are replaced by rows for
each spec below; tests without such rows are about one method of PEFT and are not collected.
"""

import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch

from tests.peft.models import OWN
from tnadapt import AdapterSpec, families
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
PAIRS = {
    "same": ({"target_modules": ["lin0"]}, {"target_modules": ["lin0"]}),
    "different": ({"target_modules": ["lin0"]}, {"target_modules": ["lin1"]}),
}
COPIED = ("target_modules", "modules_to_save")  # what a row of ours takes from a row of LoRA


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


def load_peft_tests() -> ModuleType:
    """Import PEFT's module of tests. It also imports two packages of which the tests of custom models use nothing."""
    for name, attribute in (("diffusers", "StableDiffusionPipeline"), ("datasets", "load_dataset")):
        if importlib.util.find_spec(name) is None:
            stand_in = ModuleType(name)
            setattr(stand_in, attribute, type(attribute, (), {}))
            sys.modules[name] = stand_in
    package = ModuleType(PACKAGE)
    package.__path__ = [os.environ["PEFT_TESTS"]]
    sys.modules[PACKAGE] = package
    pytest.register_assert_rewrite(f"{PACKAGE}.test_custom_models", f"{PACKAGE}.testing_common")
    return importlib.import_module(f"{PACKAGE}.test_custom_models")


def rows_of(names: str, rows: list[Any]) -> list[Any] | None:
    """Return our rows for those of a parametrized test, or None if its rows are not one per method."""
    match names.replace(" ", "").split(","):
        case ["test_name", "model_id", "config_cls", "config_kwargs"]:
            return [
                (f"{made.spec_name} {number}", model, made, words)
                for made in CLASSES
                for number, (model, words) in enumerate(TARGETS, 1)
            ]
        case ["config_cls"]:
            return CLASSES
        case ["test_name", "tuner_method", "config_cls", *_]:
            return [
                (f"{made.spec_name} {name}", "tnadapt", made, *(each | {"init_weights": False} for each in pair))
                for made in CLASSES
                for name, pair in PAIRS.items()
            ]
        case ["test_name", "config" | "config0", *_]:
            first = next(row for row in rows if isinstance(row[1], peft.LoraConfig))
            return [
                (f"{made.spec_name} {first[0]}", *(ours(made, each) for each in first[1:])) for made in CLASSES
            ]
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
        yield name, made


def replace_rows(function: Any) -> bool:
    """Replace the rows of one test. Return whether it has rows that are one per method."""
    marks = getattr(function, "pytestmark", [])
    found = False
    for number, mark in enumerate(marks):
        if mark.name == "parametrize" and (rows := rows_of(*mark.args[:2])) is not None:
            marks[number] = pytest.mark.parametrize(mark.args[0], rows).mark
            found = True
    return found


globals().update(collected(load_peft_tests()))
