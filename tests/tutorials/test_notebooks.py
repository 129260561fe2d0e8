"""Notebooks and pages of tutorials are made once for each version of a script, and not at all if a cell fails.

Where the extra `docs` is not installed, these tests are skipped. Two of them start a kernel.
"""

import importlib
import shutil
from pathlib import Path

import pytest

from tests.modules import forget

for package in ("jupytext", "nbclient", "nbconvert", "ipykernel"):
    pytest.importorskip(package, reason="the extra docs is not installed")

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SCRIPT = """\
# %% [markdown]
# # A title
#
# Words of the first cell.

# %%
import sys

print("shown")
print("not shown", file=sys.stderr)

# %%
from tnadapt import draw, families

draw(families.lora())

# %%
{end}
"""

# of jupyter_client, about the local port of the kernel that it starts
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client", "ignore::RuntimeWarning:zmq")


@pytest.fixture
def program(tmp_path, monkeypatch):
    """The program, for a clone whose only tutorial is `small`."""
    forget()
    monkeypatch.syspath_prepend(str(EXAMPLES))
    made = importlib.import_module("notebooks")
    folder = tmp_path / "docs" / "tutorials"
    folder.mkdir(parents=True)
    monkeypatch.setattr(made, "ROOT", tmp_path)
    monkeypatch.setattr(made, "FOLDER", folder)
    (folder / "small.py").write_text(SCRIPT.format(end="1 + 1"))
    yield made
    forget()


def test_a_page_has_the_text_the_outputs_and_the_picture(program, capsys):
    assert program.make_all(["small"]) == 0
    page = (program.FOLDER / "small.md").read_text()
    assert page.startswith("---\nsearch:\n  boost: 2\n---\n\n# A title\n\n")
    assert "\n\nThe same as a [notebook](small.ipynb) and as a [script](small.py).\n" in page
    assert "Words of the first cell." in page
    assert "``` { .text .output }\nshown\n```" in page
    assert "``` { .text .output }\n2\n```" in page
    assert "not shown" not in page.replace('print("not shown", file=sys.stderr)', "")
    assert "not shown" not in page.split("```python")[-1]
    (picture,) = (program.FOLDER / "small_files").iterdir()
    assert f"](small_files/{picture.name})" in page
    assert picture.read_text().startswith("<svg")
    assert list((program.ROOT / ".cache").iterdir()) == []

    before = (program.FOLDER / "small.ipynb").read_bytes()
    assert program.make_all(["small"]) == 0  # nothing has changed
    assert "small: up to date" in capsys.readouterr().out
    assert (program.FOLDER / "small.ipynb").read_bytes() == before


def test_a_cell_that_fails_leaves_nothing_and_is_named(program, capfd):
    (program.FOLDER / "small.py").write_text(SCRIPT.format(end="1 / 0"))
    assert program.make_all(["small"]) == 1
    assert "small.py: a cell failed" in capfd.readouterr().err
    assert [path.name for path in program.FOLDER.iterdir()] == ["small.py"]


def test_the_key_follows_the_script_the_packages_and_the_versions(program, monkeypatch):
    script = program.FOLDER / "small.py"
    first = program.key_of(script)
    assert program.key_of(script) == first
    package = program.ROOT / "tnadapt"
    package.mkdir()
    (package / "new.py").write_text("")
    second = program.key_of(script)
    script.write_text(SCRIPT.format(end="2 + 2"))
    third = program.key_of(script)
    monkeypatch.setattr(program.importlib.metadata, "version", lambda name: "0")
    assert len({first, second, third, program.key_of(script)}) == 4


@pytest.mark.parametrize("missing", ["small.md", "small.ipynb"])
def test_a_notebook_without_its_page_is_made_again(missing, program):
    notebook = program.read_script(program.FOLDER / "small.py")
    notebook.metadata[program.KEY] = "key"
    program.nbformat.write(notebook, program.FOLDER / "small.ipynb")
    shutil.copy(program.FOLDER / "small.py", program.FOLDER / "small.md")
    assert program.is_made(program.FOLDER / "small.py", "key")
    assert not program.is_made(program.FOLDER / "small.py", "another")
    (program.FOLDER / missing).unlink()
    assert not program.is_made(program.FOLDER / "small.py", "key")
