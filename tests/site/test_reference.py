"""The API pages have every public name exactly once, and no others."""

import ast
import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "reference" / "api").glob("*.md"))
SHOWN = re.compile(r"^::: (\S+)$", re.MULTILINE)
ENTRIES = [name for page in PAGES for name in SHOWN.findall(page.read_text(encoding="utf-8"))]
CORE = ["", ".families", ".initializers", ".sizes", ".policies", ".testing", ".binding"]
FACES = [f"tnadapt{room}" for room in CORE]
FACES += [f"tnadapt_torch{room}" for room in ("", ".peft", ".trainer", ".policies", ".optim")]
FACES += [f"tnadapt_jax{room}" for room in ("", ".nnx", ".optim")]
# Names that the core and its rooms share are shown once, under the shorter path.
SHARED = {f"tnadapt.initializers.{name}": f"tnadapt.{name}" for name in ("LORA_STEP", "kaiming_uniform", "normal")}
SHARED |= {f"tnadapt.initializers.{name}": f"tnadapt.{name}" for name in ("over_rank", "raw", "unit", "zeros")}


def listed(face):
    """Return the `__all__` of a module. That of a binding is read from its source: to import it takes seconds."""
    if not face.startswith(("tnadapt_torch", "tnadapt_jax")):
        return importlib.import_module(face).__all__
    path = ROOT.joinpath(*face.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    (said,) = (
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
    )
    return ast.literal_eval(said)


def names_of(face):
    plain = [name for name in listed(face) if not name.startswith("__") and name != "families"]
    return [SHARED.get(f"{face}.{name}", f"{face}.{name}") for name in plain]


@pytest.mark.parametrize("face", FACES)
def test_a_face_has_an_entry_for_each_of_its_names(face):
    names = names_of(face)
    shown = {name for name in ENTRIES if name.rpartition(".")[0] == face}
    assert sorted(set(names) - set(ENTRIES)) == []
    assert sorted(shown - set(names)) == []


def test_no_name_is_shown_twice():
    assert [name for name, times in Counter(ENTRIES).items() if times > 1] == []


def test_every_entry_belongs_to_a_face():
    assert sorted({name.rpartition(".")[0] for name in ENTRIES} - set(FACES)) == []


def test_what_is_shown_under_the_shorter_path_is_the_same_thing():
    for long, short in SHARED.items():
        room, _, name = long.rpartition(".")
        assert getattr(importlib.import_module(room), name) is getattr(importlib.import_module("tnadapt"), name), short


def test_every_page_is_named_on_the_first_one():
    links = set(re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs/reference/api/index.md").read_text(encoding="utf-8")))
    assert links == {page.name for page in PAGES} - {"index.md"}


def test_a_search_ranks_guides_above_these_pages():
    def boost_of(page):
        said = re.search(r"\A---\n.*?boost: ([\d.]+)\n---\n", page.read_text(encoding="utf-8"), re.DOTALL)
        return float(said[1]) if said else 1.0

    guides = sorted((ROOT / "docs" / "guides").glob("*.md"))
    assert max(map(boost_of, PAGES)) < 1 < min(map(boost_of, guides))
