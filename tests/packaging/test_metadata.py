"""What the package says of itself agrees with the files that say the same."""

import importlib
import re
import tomllib
from datetime import date
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import tnadapt
from tests.packaging.matrix import RELEASES, TESTS
from tnadapt._command import main

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
WANTED = [Requirement(text) for text in PROJECT["dependencies"]]
WANTED += [one for group in EXTRAS.values() for one in map(Requirement, group) if one.name != "tnadapt"]
PINS = {
    canonicalize_name(line.partition("==")[0]): Version(line.partition("==")[2])
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def range_of(package: str) -> Requirement:
    (found,) = {one for one in WANTED if one.name == package and one.specifier and "<" in str(one.specifier)}
    return found


def test_the_version_is_written_in_one_file():
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT
    assert re.fullmatch(r"\d+\.\d+\.\d+", tnadapt.__version__)
    assert f'\n__version__ = "{tnadapt.__version__}"\n' in text_of("tnadapt/_version.py")


def test_the_command_tells_the_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"tnadapt {tnadapt.__version__}\n"


@pytest.mark.parametrize(("binding", "framework"), [("tnadapt_torch", "torch"), ("tnadapt_jax", "jax")])
def test_the_bindings_have_the_version_of_the_core(binding, framework):
    pytest.importorskip(framework)
    assert importlib.import_module(binding).__version__ == tnadapt.__version__


def test_the_citation_and_the_changelog_have_this_version_and_one_date():
    citation = text_of("CITATION.cff")
    (version,) = re.findall(r"^version: (\S+)$", citation, re.M)
    (day,) = re.findall(r"^date-released: (\S+)$", citation, re.M)
    assert version == tnadapt.__version__
    headings = re.findall(r"^## (.*)$", text_of("CHANGELOG.md"), re.M)
    assert headings[:2] == ["[Unreleased]", f"[{version}] - {day}"]
    assert date.fromisoformat(day).isoformat() == day


def test_the_entry_for_bibtex_is_that_of_the_citation():
    entry = dict(re.findall(r"^  (\w+) = \{+(.*?)\}+,$", text_of("README.md"), re.M))
    citation = text_of("CITATION.cff")
    assert f'title: "{entry["title"]}"' in citation
    assert f"- name: {entry['author']}" in citation
    assert f"\nversion: {entry['version']}\n" in citation
    assert f"\ndate-released: {entry['year']}-" in citation
    assert f"\nrepository-code: {entry['url']}\n" in citation


def test_each_heading_of_the_changelog_has_a_link():
    names = re.findall(r"^## \[([^\]]+)\]", text_of("CHANGELOG.md"), re.M)
    assert re.findall(r"^\[([^\]]+)\]: https://", text_of("CHANGELOG.md"), re.M) == names


def test_the_urls_are_those_of_one_repository():
    home = PROJECT["urls"]["Repository"]
    assert set(PROJECT["urls"]) == {"Repository", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith(home) for url in PROJECT["urls"].values())
    assert f"\nrepository-code: {home}\n" in text_of("CITATION.cff")
    assert f"{home}/security/advisories/new" in text_of("SECURITY.md")


def test_the_classifiers_name_the_pythons_that_are_tested():
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert PROJECT["requires-python"] == f">={named[0]}"
    (tested,) = re.findall(r"^ +python: \[(.*)\]$", text_of(".github/workflows/test.yml"), re.M)
    assert re.findall(r'"([^"]+)"', tested) == named


@pytest.mark.parametrize("package", ["tnadapt", "tnadapt_torch", "tnadapt_jax"])
def test_each_package_says_that_it_has_types(package):
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("wanted", WANTED, ids=lambda one: one.name)
def test_the_tested_release_of_a_dependency_is_one_that_is_allowed(wanted):
    assert PINS[canonicalize_name(wanted.name)] in wanted.specifier


def test_each_dependency_has_a_reason():
    page = text_of("docs/development/dependencies.md")
    told = set(re.findall(r"^\|(?: [\w]+ \|)? ([\w-]+) \|", page, re.M))
    told = {canonicalize_name(name) for name in told}
    assert {canonicalize_name(one.name) for one in WANTED} - told == set()


@pytest.mark.parametrize("package", list(RELEASES))
def test_the_matrix_tests_the_ends_of_the_range(package):
    wanted, releases = range_of(package), [Version(release) for release in RELEASES[package]]
    assert releases == sorted(releases)
    assert all(release in wanted.specifier for release in releases)
    (least,) = re.findall(r">=([\d.]+)", str(wanted.specifier))
    assert releases[0].release[:2] == Version(least).release[:2]
    assert releases[-1] == PINS[package]
    assert all((ROOT / test).exists() for test in TESTS[package])


def test_the_bridge_takes_the_series_of_peft_that_the_extra_allows():
    (series,) = re.findall(r'^SERIES = "([\d.]+)"', text_of("tnadapt_torch/peft/_config.py"), re.M)
    major, minor = map(int, series.split("."))
    assert {str(one) for one in range_of("peft").specifier} == {f">={series}", f"<{major}.{minor + 1}"}
