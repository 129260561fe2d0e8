"""docs/development/architecture.md lists exactly the existing folders and modules; tests/core mirrors tnadapt."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "development" / "architecture.md").read_text(encoding="utf-8")
TITLES = {"tnadapt": "## The core", "tnadapt_torch": "## The PyTorch binding", "tnadapt_jax": "## The JAX binding"}

FOLDERS = sorted(path.parent for path in (ROOT / "tnadapt").glob("_*/__init__.py"))
FREE = {"equation": "every test of a plan checks it"}


def rows_of(package: str) -> list[list[str]]:
    """Return the cells of the table under a package's title, without the header."""
    section = PAGE.split(TITLES[package])[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


@pytest.mark.parametrize("package", TITLES)
def test_every_folder_and_module_has_a_row(package):
    named = [name for cells in rows_of(package) for name in re.findall(r"`([\w/]+)`", cells[0])]
    found = [path for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert sorted(named) == sorted(path.stem if path.suffix else f"{path.name}/" for path in found)


@pytest.mark.parametrize("package", ["tnadapt", "tnadapt_torch"])
def test_the_row_of_a_private_folder_lists_its_files(package):
    for cells in rows_of(package):
        folder = cells[0].strip("`")
        if folder.startswith("_") and folder.endswith("/"):
            files = {path.stem for path in (ROOT / package / folder).glob("*.py")} - {"__init__"}
            assert set(re.findall(r"`([\w]+)`", re.sub(r"\([^)]*\)", "", cells[1]))) == files, folder


def test_the_order_of_imports_is_that_of_the_page():
    """The rows of the core's table are in the order of the import contract."""
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split('name = "imports go down only"')[1]
    layers = re.findall(r'^    "(.*)",$', contract.split("]")[1].split("[")[-1], flags=re.MULTILINE)
    order = [name for line in layers for name in line.split(" | ")]
    named = [name.strip("/") for cells in rows_of("tnadapt") for name in re.findall(r"`([\w/]+)`", cells[0])]
    assert [name for name in named if name != "__init__"] == order


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_file_of_the_core_has_a_test_file_of_its_name(folder):
    mirror = ROOT / "tests" / "core" / folder.name.strip("_")
    missing = [
        path.stem
        for path in sorted(folder.glob("*.py"))
        if path.stem not in {"__init__", *FREE} and not (mirror / f"test_{path.stem}.py").exists()
    ]
    assert missing == []
