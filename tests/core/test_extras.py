"""An import that needs a missing package raises one line with the command that installs it, wherever it stands."""

import importlib
import re
import runpy
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


PARTS = {  # how a package of an extra misses one of its own requirements: the code of the package, and what is named
    "plainly": ("import not_there", "not_there"),
    "below": ("import not_there.below", "not_there"),
    "in a module of its own": ("from packed import inner", "not_there"),
    "in a package between": ("import between", "not_there"),
    "with an error of its own": (
        "try:\n    import not_there\nexcept ImportError as error:\n    raise ModuleNotFoundError('it') from error",
        "not_there",
    ),
    "after another": ("try:\n    import not_there\nexcept ImportError:\n    import nor_there", "nor_there"),
}


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A function: let the extra `torch` be a package of this code, which is forgotten afterwards."""
    monkeypatch.setitem(MODULES, "torch", ("packed",))
    monkeypatch.syspath_prepend(tmp_path)

    def write(code):
        (tmp_path / "packed").mkdir()
        (tmp_path / "packed" / "__init__.py").write_text(code)
        (tmp_path / "packed" / "inner.py").write_text("import not_there")
        (tmp_path / "between.py").write_text("import not_there")

    yield write
    for name in under(list(sys.modules), "packed"):
        del sys.modules[name]


@pytest.mark.parametrize(("code", "module"), PARTS.values(), ids=PARTS)
def test_a_part_of_an_extra_that_is_missing_is_told_as_the_whole(code, module, packed):
    packed(code)
    line = f'here: expected {module} to be installed, got no such module. Run: pip install "tnadapt[torch]"'
    with pytest.raises(ExtraError, match=f"^{re.escape(line)}$") as caught, extra("torch", "here"):
        importlib.import_module("packed")
    assert caught.value.name == module


def test_an_error_without_the_name_of_a_module_is_told_as_python_tells_it(packed):
    packed("raise ModuleNotFoundError('broken')")
    with pytest.raises(ModuleNotFoundError, match=r"^broken$"), extra("torch", "here"):
        importlib.import_module("packed")


def test_what_failed_before_the_import_is_no_part_of_it(packed):
    packed("raise ValueError('broken')")

    def go_on():
        try:
            importlib.import_module("packed")
        except ValueError:
            with extra("torch", "here"):
                importlib.import_module("not_there")

    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'not_there'$"):
        go_on()


@pytest.mark.skipif(find_spec("jax") is None, reason="jax is not installed")
def test_jax_without_jaxlib_is_told_as_without_jax(monkeypatch):
    """Runs the file of jax that notices it, since jax cannot be imported twice."""
    monkeypatch.setitem(sys.modules, "jaxlib", None)
    file = Path(find_spec("jax").origin).parent / "_src" / "lib" / "__init__.py"
    with pytest.raises(ExtraError, match=r"^here: expected jaxlib to be installed,"), extra("jax", "here"):
        runpy.run_path(str(file))


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
