"""An import that needs a missing package raises one line with the command that installs it, wherever it stands."""

import importlib
import re
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from tnadapt import TnadaptError
from tnadapt._extras import MODULES, extra
from tnadapt.binding import ExtraError

ROOT = Path(__file__).parents[2]
MISSING = [  # what is imported, what is not installed, the module that notices it, the extra that has it
    ("tnadapt_torch", "torch", "tnadapt_torch", "torch"),
    ("tnadapt_torch.peft", "torch", "tnadapt_torch", "torch"),
    ("tnadapt_torch.peft", "peft", "tnadapt_torch.peft", "peft"),
    ("tnadapt_torch.trainer", "transformers", "tnadapt_torch.trainer", "peft"),
    ("tnadapt_torch.trainer", "accelerate", "tnadapt_torch.trainer", "peft"),
    ("tnadapt_jax", "jax", "tnadapt_jax", "jax"),
    ("tnadapt_jax.optim", "optax", "tnadapt_jax.optim", "jax"),
    ("tnadapt_jax.nnx", "flax", "tnadapt_jax.nnx", "nnx"),
    ("tnadapt.testing", "hypothesis", "tnadapt.testing", "testing"),
]


def under(names, where):
    return [name for name in names if name == where or name.startswith(f"{where}.")]


@pytest.fixture
def without(monkeypatch):
    """A function: make a package missing, and forget what was imported of the module that needs it."""
    forgotten = []

    def block(module: str, where: str) -> None:
        forgotten.append((where, set(sys.modules)))
        for name in under(list(sys.modules), where) + under(list(sys.modules), module):
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)  # what Python itself takes for a missing module

    yield block
    for where, before in forgotten:  # what half an import has left; no framework, which cannot be imported twice
        for name in set(under(list(sys.modules), where)) - before:
            del sys.modules[name]


@pytest.mark.parametrize(("imported", "module", "where", "name"), MISSING, ids=lambda text: text)
def test_a_missing_package_is_one_line_with_the_command(imported, module, where, name, without):
    framework = where.partition(".")[0].removeprefix("tnadapt").strip("_")
    if framework and where != f"tnadapt_{framework}" and find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    without(module, where)
    line = f'{where}: expected {module} to be installed, got no such module. Run: pip install "tnadapt[{name}]"'
    with pytest.raises(ImportError, match=f"^{re.escape(line)}$") as caught:
        importlib.import_module(imported)
    assert isinstance(caught.value, ModuleNotFoundError)
    assert isinstance(caught.value, TnadaptError)
    assert caught.value.name == module
    assert caught.value.__suppress_context__


def test_any_other_missing_module_is_told_as_python_tells_it():
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'no_such_module'$"), extra("torch", "here"):
        importlib.import_module("no_such_module")
    with pytest.raises(ImportError, match="cannot import name 'nothing'"), extra("torch", "here"):
        exec("from tnadapt import nothing")


def test_the_first_place_that_misses_a_package_is_named():
    with pytest.raises(ExtraError, match=r"^inner: "), extra("jax", "outer"), extra("torch", "inner"):
        raise ModuleNotFoundError(name="torch.nn")
    with pytest.raises(ExtraError, match=r"^inner: "), extra("torch", "outer"), extra("torch", "inner"):
        raise ModuleNotFoundError(name="torch")


def test_every_extra_installs_the_modules_that_its_error_names():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, modules in MODULES.items():
        installed = {re.split(r"[<>=\[]", one)[0] for one in declared[name]}
        assert set(modules) - {"jaxlib"} <= installed  # jax brings jaxlib
