"""Make an executed notebook and a page of each tutorial in docs/tutorials. What is made is not committed.

    python notebooks.py                     those whose script, or whose packages, have changed since
    python notebooks.py serving compress    these alone

A tutorial is a script in jupytext's percent format. jupytext turns it into a notebook, nbclient runs that in an empty
folder, and nbconvert writes the page that mkdocs shows. What a cell writes to standard error, such as progress bars and
warnings of other libraries, is left out; an exception ends the program.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "tutorials"
PACKAGES = ("tnadapt", "tnadapt_torch", "tnadapt_jax")
VERSIONS = ("numpy", "torch", "jax", "optax", "transformers", "peft", "matplotlib", "reasoning-gym", "nbconvert")
KEY = "made_from"  # where a notebook says what it was made from
LIMIT, START = 1800, 300  # seconds for one cell, and for the start of a kernel
FAILED = 1  # exit status
FOUND_FIRST = "---\nsearch:\n  boost: 2\n---\n\n"  # a search shows tutorials above the reference
TEMPLATE = """\
{%- extends 'markdown/index.md.j2' -%}
{%- macro shown(text) -%}
{%- if text.strip() %}
``` { .text .output }
{{ text.rstrip() }}
```
{% endif -%}
{%- endmacro -%}
{% block stream %}{{ shown(output.text) }}{% endblock stream %}
{% block data_text scoped %}{{ shown(output.data['text/plain']) }}{% endblock data_text %}
{% block data_svg %}
![the picture that this cell shows]({{ output.metadata.filenames['image/svg+xml'] | path2url }})
{% endblock data_svg %}
{% block data_png %}
![the picture that this cell shows]({{ output.metadata.filenames['image/png'] | path2url }})
{% endblock data_png %}
"""


def key_of(script: Path) -> str:
    """Return a digest of all that the outputs depend on: the script, our packages, versions, this program."""
    digest = hashlib.sha256(script.read_bytes())
    for file in sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    digest.update(Path(__file__).read_bytes() + sys.version.encode())
    for name in VERSIONS:
        try:
            digest.update(f"{name} {importlib.metadata.version(name)}".encode())
        except importlib.metadata.PackageNotFoundError:
            digest.update(f"{name} missing".encode())
    return digest.hexdigest()


def is_made(script: Path, key: str) -> bool:
    """Return whether the notebook and the page of a script exist and were made from what is there now."""
    notebook = script.with_suffix(".ipynb")
    if not notebook.is_file() or not script.with_suffix(".md").is_file():
        return False
    return bool(nbformat.read(notebook, as_version=4).metadata.get(KEY) == key)


def read_script(script: Path) -> Any:
    """Return a tutorial as a notebook without outputs, with the links to its other forms below the title."""
    notebook = jupytext.read(script, fmt="py:percent")
    title, _, rest = notebook.cells[0].source.partition("\n")
    links = f"The same as a [notebook]({script.stem}.ipynb) and as a [script]({script.name})."
    notebook.cells[0].source = f"{title}\n\n{links}\n{rest}"
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


def run_cells(notebook: Any, folder: Path) -> None:
    """Run a notebook in a folder, and leave out of its outputs what went to standard error."""
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=LIMIT, startup_timeout=START, coalesce_streams=True, resources=place).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def write_page(notebook: Any, name: str) -> None:
    """Write the page of a notebook, and its pictures beside it."""
    exporter = MarkdownExporter(raw_template=TEMPLATE)
    pictures = FOLDER / f"{name}_files"
    text, resources = exporter.from_notebook_node(
        notebook, resources={"unique_key": name, "output_files_dir": pictures.name}
    )
    shutil.rmtree(pictures, ignore_errors=True)
    for file, content in resources["outputs"].items():
        (FOLDER / file).parent.mkdir(exist_ok=True)
        (FOLDER / file).write_bytes(content)
    (FOLDER / f"{name}.md").write_text(FOUND_FIRST + text, encoding="utf-8")


def make(script: Path) -> None:
    """Run a tutorial and write its notebook and its page, or neither if a cell raises."""
    key, notebook = key_of(script), read_script(script)
    (ROOT / ".cache").mkdir(exist_ok=True)
    folder = Path(
        tempfile.mkdtemp(dir=ROOT / ".cache", prefix=f"{script.stem}-")
    )  # in the clone, as a tutorial may ask
    try:
        run_cells(notebook, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    notebook.metadata[KEY] = key
    write_page(notebook, script.stem)
    nbformat.write(notebook, script.with_suffix(".ipynb"))


def make_all(names: Iterable[str]) -> int:
    """Make what is not made yet; return the exit status."""
    for script in [FOLDER / f"{name}.py" for name in names]:
        if is_made(script, key_of(script)):
            print(f"{script.stem}: up to date", flush=True)
            continue
        print(f"{script.stem}: running", flush=True)
        try:
            make(script)
        except (CellControlSignal, DeadKernelError) as error:  # a cell raised or took too long; or Python ended
            print(f"notebooks.py: error: {script.name}: a cell failed.\n{error}", file=sys.stderr)
            return FAILED
    return 0


def main() -> int:
    """Return 0 for success, 1 if a cell failed, 2 for invalid input."""
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"tutorials (default all): {', '.join(names)}")
    chosen = parser.parse_args().names or names
    if unknown := sorted(set(chosen) - set(names)):
        parser.error(f"expected tutorials, got {', '.join(unknown)}; there are {', '.join(names)}")
    os.environ.update({"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONHASHSEED": "0"})  # for the kernels
    return make_all(chosen)


if __name__ == "__main__":
    sys.exit(main())
