"""The command `tnadapt new`: a folder with a spec to change, the test that proves it, its picture and its row."""

import argparse
import importlib.util
import keyword
import os
import runpy
from pathlib import Path
from typing import Any

from tnadapt._command.terminal import output, print_lines
from tnadapt._diagram import draw
from tnadapt._errors import FormatError
from tnadapt._files import replace_folder
from tnadapt._hosts import find_host
from tnadapt._language import AdapterSpec, count
from tnadapt._structure import rank_bound

__all__: list[str] = []

RANK = 8  # that of the template for the test, too
LONGEST = 100  # letters of a name, which that of the test and those of caches are longer than; a system takes 255
WINDOWS = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
MODELS = ("roberta-base", "llama-2-7b")

SPEC = '''\
"""The adapter NAME: change the six lines of its table, then run `python -m pytest NAME`."""

from tnadapt import AdapterSpec, frozen, kaiming_uniform, normal, over_rank, trainable, zeros

UPDATE = "dW_lk = (8 / r) B diag(c_lk) A"  # for the row in README.md
SOURCE = "unpublished"

spec = AdapterSpec(
    name="NAME",
    weight="out in",
    over="layer kind",
    factors={
        "A": frozen("r in", init=kaiming_uniform("in")),  # random, and one for the whole model
        "c": trainable("layer kind r", init=normal()),  # a vector for each weight
        "B": trainable("out r", init=zeros()),  # the one factor that starts at 0
    },
    scale=over_rank("r", alpha=8),
)
'''

TEST = '''\
"""NAME keeps every law of an adapter, and its row and its picture are up to date."""

from pathlib import Path

import pytest
from NAME import SOURCE, UPDATE, spec

from tnadapt import count, draw, find_host, rank_bound
from tnadapt.testing import LAWS, check

HERE = Path(__file__).parent
EXAMPLES = 10  # random models for each law; take 100 before you publish
RANK = 8  # of the counts in the row; None if no bond takes a rank
SIZES: dict[str, int] = {}  # of other modes, such as {"head": 12}


def make_row() -> str:
    cells = [f"`{spec.name}`", UPDATE, f"`{spec.formula()}`"]
    cells.append(", ".join(name for name, factor in spec.arrays.items() if factor.is_zero) + " = 0")
    for model in ("roberta-base", "llama-2-7b"):
        sites = find_host(model).sites()
        adapter = spec.bind(sites, rank=RANK, sizes=SIZES)
        cells.append(f"{count(adapter).trainable:,}; {rank_bound(adapter, sites[0]).rank:,}")
    return "| " + " | ".join([*cells, SOURCE]) + " |"


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_a_law_holds(law):
    check(spec, examples=EXAMPLES, sizes=SIZES, laws=[law])


def test_the_row_is_up_to_date():
    row = make_row()
    assert row in (HERE / "README.md").read_text(encoding="utf-8"), f"put this row into README.md:\\n{row}"


def test_the_picture_is_up_to_date():
    picture = (HERE / "NAME.svg").read_text(encoding="utf-8")
    assert picture == draw(spec).svg(), "run: tnadapt draw NAME.py:spec -o NAME.svg"
'''

README = """\
# NAME

![NAME as a tensor network](NAME.svg)

The trained parameters on the query and value weights of two models at rank 8, and the bound on the rank of one update:

HEAD
|---|---|---|---|---|---|---|
ROW

## How to go on

1. Change the table in `NAME.py`, and the words of `UPDATE` and `SOURCE` above it. A mistake is an error that lists all
   that is wrong.
2. Install what the test needs: `pip install "tnadapt[testing]" pytest`. Then run `python -m pytest NAME`. It tests the
   laws that every adapter must keep, and shows the smallest model that breaks one. It also says what to do if the row
   above or the picture is no longer that of the table.
3. `tnadapt show NAME/NAME.py:spec --sites roberta-base` prints counts, ranks, costs and the diagram.
   `tnadapt compare NAME/NAME.py:spec lora lotr --sites roberta-base` compares it with others.
4. Train it: `tnadapt_torch.attach(model, spec, target_modules=[...], rank=8)`, or `spec.bind(...)` in JAX.
"""

HEAD = (
    "| family | update | parameters of one network | zero at the start | RoBERTa-base: parameters; rank bound "
    "| LLaMA-2-7B: parameters; rank bound | source |"
)


def add_name(parser: argparse.ArgumentParser) -> None:
    """Add the argument of the command to its parser."""
    parser.add_argument("name", type=name_of, metavar="NAME", help="the adapter's name, and that of the new folder")


def name_of(text: str) -> str:
    """Return a name that a module and a folder can have, on every system."""
    if not (text.isascii() and text.isidentifier()) or keyword.iskeyword(text) or text.startswith("_"):
        raise argparse.ArgumentTypeError(f"expected a name of letters, digits and _, as in my_adapter, got {text!r}")
    if len(text) > LONGEST:
        raise argparse.ArgumentTypeError(
            f"expected a name of at most {LONGEST} letters, got {len(text)}; choose a shorter name"
        )
    if text.lower() in WINDOWS:
        raise argparse.ArgumentTypeError(
            f"expected a name that any system takes, got {text!r}, which Windows reserves; choose another name"
        )
    return text


def make_adapter(options: argparse.Namespace) -> int:
    """Write the folder of a new adapter, or nothing. A folder or a file that exists is left as it is."""
    name: str = options.name
    folder = Path(name)
    if os.path.lexists(folder):
        raise FormatError(f"{name}: expected a name that no file or folder has here, got one.\nChoose another name.")
    if importlib.util.find_spec(name) is not None:
        raise FormatError(
            f"{name}: expected a name that no installed module has, got one that would hide a module.\n"
            "Choose another name."
        )
    files = [f"{name}.py", f"test_{name}.py", f"{name}.svg", "README.md"]
    replace_folder(folder, files, lambda part: _fill(part, name))
    said = ("the spec: change its table", "its test: run python -m pytest " + name, "its picture", "its row")
    print_lines(output(), *(f"{folder / file}  {about}" for file, about in zip(files, said, strict=True)))
    return 0


def _fill(folder: Path, name: str) -> None:
    """Write the four files. The picture and the row are those of the spec as it was written."""

    def write(file: str, text: str) -> None:
        (folder / file).write_text(text.replace("NAME", name), encoding="utf-8")

    write(f"{name}.py", SPEC)
    write(f"test_{name}.py", TEST)
    made = runpy.run_path(str(folder / f"{name}.py"))
    (folder / f"{name}.svg").write_text(draw(made["spec"]).svg(), encoding="utf-8")
    write("README.md", README.replace("HEAD", HEAD).replace("ROW", _row(made)))


def _row(made: dict[str, Any]) -> str:
    """Format the row that the new test expects."""
    spec: AdapterSpec = made["spec"]
    cells = [f"`{spec.name}`", made["UPDATE"], f"`{spec.formula()}`"]
    cells.append(", ".join(name for name, factor in spec.arrays.items() if factor.is_zero) + " = 0")
    for model in MODELS:
        sites = find_host(model).sites()
        adapter = spec.bind(sites, rank=RANK)
        cells.append(f"{count(adapter).trainable:,}; {rank_bound(adapter, sites[0]).rank:,}")
    return "| " + " | ".join([*cells, made["SOURCE"]]) + " |"
