"""The folder of a new adapter: its test passes, finds what is out of date, and nothing is ever overwritten."""

import ast
import errno
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.thorough import left_to_laws
from tnadapt import AdapterSpec
from tnadapt._command.arguments import spec_named
from tnadapt._command.main import main
from tnadapt._command.new import name_of
from tnadapt.testing import LAWS

FILES = ["README.md", "my_adapter.py", "my_adapter.svg", "test_my_adapter.py"]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    """The folder that the command has written."""
    monkeypatch.chdir(tmp_path)
    assert main(["new", "my_adapter"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        os.path.join("my_adapter", name)  # noqa: PTH118  (as it is printed)
        for name in ("my_adapter.py", "test_my_adapter.py", "my_adapter.svg", "README.md")
    ]
    return tmp_path / "my_adapter"


@pytest.fixture
def tests_of(folder, monkeypatch):
    """A function: the test file as it imports the spec now. The module of the spec is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(folder))

    def load():
        sys.modules.pop("my_adapter", None)
        return runpy.run_path(str(folder / "test_my_adapter.py"))

    yield load
    sys.modules.pop("my_adapter", None)


def test_the_folder_holds_four_files_and_the_command_reads_the_spec(folder):
    assert sorted(path.name for path in folder.iterdir()) == FILES
    spec = spec_named(f"{folder / 'my_adapter.py'}:spec")
    assert isinstance(spec, AdapterSpec)
    assert spec.name == "my_adapter"
    assert not any("NAME" in path.read_text(encoding="utf-8") for path in folder.iterdir())


def test_the_new_test_passes(tests_of):
    made = tests_of()
    made["test_the_row_is_up_to_date"]()
    made["test_the_picture_is_up_to_date"]()
    made["test_a_law_holds"].__globals__["EXAMPLES"] = 1
    (laws,) = made["test_a_law_holds"].pytestmark
    assert laws.args == ("law", LAWS)
    for law in LAWS:
        made["test_a_law_holds"](law)


def imported_by(*files):
    """Return the first part of the name of each module that these files import."""
    names = set()
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition(".")[0])
    return names


def test_the_readme_installs_what_the_test_imports_and_no_more(folder):
    (command,) = re.findall(r"`pip install ([^`]+)`", (folder / "README.md").read_text(encoding="utf-8"))
    package, *others = shlex.split(command)
    assert package == "tnadapt[testing]"
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    brought, more = (
        {re.split(r"[<>=\[]", one)[0] for one in some}
        for some in (declared["dependencies"], declared["optional-dependencies"]["testing"])
    )
    needed = imported_by(folder / "test_my_adapter.py", *(ROOT / "tnadapt" / "testing").glob("*.py"))
    assert needed - brought - {"tnadapt", "my_adapter"} - sys.stdlib_module_names == {*more, *others}


def test_the_row_has_the_columns_of_its_head_and_the_counts(folder):
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    (head,) = (line for line in lines if line.startswith("| family | update |"))
    (row,) = (line for line in lines if line.startswith("| `my_adapter` |"))
    assert row.split(" | ")[4] == f"{24 * 8 + 768 * 8:,}; 8"
    assert row.count("|") == head.count("|")


def test_a_table_that_was_changed_is_noticed(folder, tests_of):
    file = folder / "my_adapter.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"layer kind r"', '"layer r"'), encoding="utf-8")
    made = tests_of()
    with pytest.raises(AssertionError, match=r"put this row into README\.md"):
        made["test_the_row_is_up_to_date"]()
    with pytest.raises(AssertionError, match=r"run: tnadapt draw my_adapter\.py:spec"):
        made["test_the_picture_is_up_to_date"]()


def test_the_advice_for_a_changed_table_helps(folder, tests_of, monkeypatch):
    file, readme = folder / "my_adapter.py", folder / "README.md"
    old = tests_of()["make_row"]()
    file.write_text(file.read_text(encoding="utf-8").replace('"layer kind r"', '"layer r"'), encoding="utf-8")
    made = tests_of()
    readme.write_text(readme.read_text(encoding="utf-8").replace(old, made["make_row"]()), encoding="utf-8")
    monkeypatch.chdir(folder)
    assert main(["draw", "my_adapter.py:spec", "-o", "my_adapter.svg"]) == 0
    made["test_the_row_is_up_to_date"]()
    made["test_the_picture_is_up_to_date"]()


@pytest.mark.parametrize("name", ["a-b", "2b", "for", "_x", "a/b", "..", "", "a b", "na\u00efve"])
def test_what_is_no_name_is_refused(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["new", name])
    assert "expected a name of letters, digits and _" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["con", "NUL", "Aux", "prn", "com1", "LPT9", "a" * 101, "a" * 300])
def test_a_name_that_some_system_refuses_is_refused_everywhere(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["new", name])
    rule = f"of at most 100 letters, got {len(name)}; choose a shorter name;"
    if len(name) < 100:
        rule = f"that any system takes, got {name!r}, which Windows reserves; choose another name;"
    error = capsys.readouterr().err
    assert error == f"tnadapt: argument NAME: expected a name {rule} see tnadapt new --help\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["console", "aux_", "com", "com10", "nul1", "a" * 100])
def test_a_name_that_is_only_like_a_reserved_one_is_taken(name):
    assert name_of(name) == name


def test_a_full_disk_and_a_folder_that_is_gone_are_one_line(tmp_path, monkeypatch, capsys):
    def stop(number):
        raise OSError(errno.ENOSPC, "full")

    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", stop)
        assert main(["new", "my_adapter"]) == 2
    told = "tnadapt: my_adapter: expected a writable path, got error"
    assert capsys.readouterr().err.startswith(f"{told} 'No space left on device'. Make room on the disk, or write")
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["new", "my_adapter"]) == 2
    assert capsys.readouterr().err == (
        f"{told} 'No such file or directory'. Create its folder first. Nothing was written.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_module_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "numpy"]) == 2
    assert "would hide a module" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_nothing_is_overwritten(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    there = tmp_path / "my_adapter"
    if kind == "folder":
        there.mkdir()
    elif kind == "file":
        there.write_text("mine")
    else:
        there.symlink_to("nowhere")
    assert main(["new", "my_adapter"]) == 2
    assert "expected a name that no file or folder has here" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["my_adapter"]
    assert kind != "file" or there.read_text() == "mine"


def test_an_interrupted_command_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tnadapt._command.new.draw", lambda spec: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division"):
        main(["new", "my_adapter"])
    assert list(tmp_path.iterdir()) == []


@left_to_laws("a process of its own, with pytest and hypothesis in it")
def test_the_new_test_passes_in_pytest(folder):
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "my_adapter"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        call, cwd=folder.parent, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout
    assert f"{len(LAWS) + 2} passed" in ended.stdout
