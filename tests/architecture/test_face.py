"""Public names are listed and defined once, and folders import only from the `__init__` of others."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("tnadapt", "tnadapt_torch", "tnadapt_jax")
FACES = ["tnadapt", *(f"tnadapt.{room}" for room in ("families", "policies", "testing"))]
FACES += [f"tnadapt_torch{room}" for room in ("", ".optim", ".peft", ".policies")]
FACES += ["tnadapt_jax", "tnadapt_jax.optim"]


def import_or_skip(name: str):
    for package, needed in (("tnadapt_jax", "jax"), ("tnadapt_torch", "torch"), ("tnadapt_torch.peft", "peft")):
        if name.startswith(package):
            pytest.importorskip(needed)
    return importlib.import_module(name)


@pytest.mark.parametrize("name", FACES)
def test_every_public_name_exists_and_is_listed_once(name):
    face = import_or_skip(name)
    assert [word for word in face.__all__ if not hasattr(face, word)] == []
    assert len(face.__all__) == len(set(face.__all__))


def breaches(path: Path) -> Iterator[str]:
    """Find imports from a module inside another folder instead of the folder's `__init__`."""
    here = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            words = tuple(module.split("."))
            is_deep = words[0] in PACKAGES and len(words) > 2
            if is_deep and words[:2] != here[:2]:
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {module}"


@pytest.mark.parametrize("package", PACKAGES)
def test_folders_import_only_from_the_init_of_others(package):
    found = [breach for path in sorted((ROOT / package).rglob("*.py")) for breach in breaches(path)]
    assert found == []


def test_an_import_from_inside_another_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "tnadapt" / "_files").mkdir(parents=True)
    file = tmp_path / "tnadapt" / "_files" / "file.py"
    file.write_text(
        "from tnadapt._hosts.site import Site\nfrom tnadapt._files.text import dump\nimport tnadapt._hosts\n"
    )
    assert list(breaches(file)) == ["tnadapt/_files/file.py:1: tnadapt._hosts.site"]


@pytest.mark.parametrize("name", FACES)
def test_a_public_name_is_exported_by_one_private_module(name):
    face = import_or_skip(name)
    modules = [f"{name}.{module.name}" for module in pkgutil.iter_modules(face.__path__) if module.name[0] == "_"]
    modules = [module for module in modules if not module.endswith("__main__")]
    offered = [word for module in modules for word in importlib.import_module(module).__all__]
    assert [word for word in face.__all__ if offered.count(word) > 1] == []
