"""The wheel and the source distribution that `make package` built: their files, their page, and the wheel at work."""

import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_string
from pathlib import Path, PurePosixPath

import pytest

import tnadapt
from tests.thorough import left_to_package

ROOT = Path(__file__).parents[2]
DIST = ROOT / os.environ.get("PACKAGE", "dist")
PACKAGES = ("tnadapt", "tnadapt_torch", "tnadapt_jax")
NAME = f"tnadapt-{tnadapt.__version__}"
WHEEL = DIST / f"{NAME}-py3-none-any.whl"
SOURCE = DIST / f"{NAME}.tar.gz"
BESIDE = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "SECURITY.md", "pyproject.toml"}
RECORDS = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
RELATIVE = re.compile(r"""\]\((?!https://|#)[^)]*\)|\b(?:src|href)=["'](?!https://|#)""")

pytestmark = left_to_package("it builds the package first")


def modules() -> set[str]:
    """Return the paths of all files of the packages, but for what Python caches."""
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def page() -> str:
    """Return the metadata of the wheel, which end with the page that the package index shows."""
    with zipfile.ZipFile(WHEEL) as file:
        return file.read(f"{NAME}.dist-info/METADATA").decode()


def run(*words: str | Path, cwd: Path) -> str:
    """Run a program that must succeed, without the settings of this process, and return what it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COLUMNS"))}
    done = subprocess.run(words, cwd=cwd, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment(folder: Path) -> Path:
    """Make an environment without any package and return its folder of programs."""
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin"


def install(programs: Path, *words: str | Path) -> None:
    pip = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "-q", "--disable-pip-version-check"]
    run(*pip, *words, cwd=programs)


def test_nothing_else_was_built():
    assert {path.name for path in DIST.iterdir()} == {WHEEL.name, SOURCE.name}


def test_the_wheel_has_the_packages_and_its_records():
    with zipfile.ZipFile(WHEEL) as file:
        found = set(file.namelist())
    assert found == modules() | {f"{NAME}.dist-info/{name}" for name in RECORDS}
    assert {f"{package}/py.typed" for package in PACKAGES} < found


def test_the_source_has_the_packages_and_what_describes_them():
    with tarfile.open(SOURCE) as file:
        found = {PurePosixPath(one.name).relative_to(NAME).as_posix() for one in file.getmembers() if one.isfile()}
    assert found == modules() | BESIDE | {"PKG-INFO", ".gitignore"}  # hatchling adds the last


def test_the_metadata_are_those_of_the_project():
    data = message_from_string(page())
    assert (data["Name"], data["Version"]) == ("tnadapt", tnadapt.__version__)
    assert (data["License-Expression"], data["License-File"]) == ("Apache-2.0", "LICENSE")
    assert (data["Author"], data["Requires-Python"]) == ("tnadapt contributors", ">=3.11")
    assert data["Description-Content-Type"] == "text/markdown"


def test_links_of_the_page_lead_to_the_release():
    text = page()
    assert RELATIVE.findall(text) == []
    (wanted,) = re.findall(r"\[CONTRIBUTING.md\]\((\S+)\)", text)
    assert wanted == f"https://github.com/tnadapt/tnadapt/blob/v{tnadapt.__version__}/CONTRIBUTING.md"
    files = re.findall(rf"/tnadapt/(?:blob/)?v{tnadapt.__version__}/([\w./-]+)", text)
    assert [name for name in files if not (ROOT / name).exists()] == []
    assert len(files) > 10


@pytest.mark.parametrize(
    "link", ["[a](docs/a.md)", "![a](a.svg)", '<img src="docs/a.png">', "[![a](https://b)](docs/c.md)"]
)
def test_a_link_that_leads_nowhere_is_found(link):
    assert RELATIVE.search(link)


def test_the_wheel_trains_in_an_empty_environment(tmp_path):
    """With the libraries of this Python and the wheel alone; the checkout is not on its path."""
    programs = environment(tmp_path / "empty")
    install(programs, "--no-deps", WHEEL)
    (site,) = (tmp_path / "empty").glob("lib/python*/site-packages")
    shared = [folder for folder in sys.path if folder.endswith("site-packages")]
    (site / "shared.pth").write_text("\n".join(shared), encoding="utf-8")
    said = json.loads(run(programs / "python", "-I", ROOT / "tests/packaging/train.py", "a.safetensors", cwd=tmp_path))
    assert all(Path(file).is_relative_to(site) for file in said["files"])
    assert said["version"] == tnadapt.__version__
    assert said["last"] < 0.5 * said["first"]
    assert said["same"]
    assert (tmp_path / "a.safetensors").stat().st_size > 0


def test_the_core_works_with_what_the_wheel_brings(tmp_path):
    """In an environment that pip fills from the package index, at the tested versions."""
    programs = environment(tmp_path / "core")
    install(programs, "-c", ROOT / "constraints.txt", WHEEL)
    assert run(programs / "tnadapt", "--version", cwd=tmp_path) == f"tnadapt {tnadapt.__version__}\n"
    assert "13,824" in run(programs / "tnadapt", "show", "lotr", "--sites", "roberta-base", "--rank", "8", cwd=tmp_path)
    program = "import tnadapt as t; a = t.families.vera().bind(t.grid(layers=2, kinds={'q': (6, 6)}), rank=2, seed=0); "
    program += "t.save(a, t.init(a), 'v.safetensors'); print(t.load('v.safetensors')[0] == a)"
    assert run(programs / "python", "-I", "-c", program, cwd=tmp_path) == "True\n"
