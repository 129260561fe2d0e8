"""Workflows have pinned actions and few permissions. `make package` checks their grammar, and that of other files."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.thorough import left_to_package

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
SCHEMAS = {
    "github-workflows": WORKFLOWS,
    "github-issue-forms": FORMS,
    "github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "dependabot": [GITHUB / "dependabot.yml"],
    "citation-file-format": [ROOT / "CITATION.cff"],
}
PINNED = re.compile(r"actions/[a-z-]+@v\d+|[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def read(path: Path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def program(name: str) -> str | None:
    """Return the path of a program that is installed beside this Python, or elsewhere on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def run(*words: str) -> None:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_workflows_for_tests_docs_and_releases():
    assert [path.stem for path in WORKFLOWS] == ["docs", "release", "test"]


@each_workflow
def test_actions_of_others_are_pinned_by_commit_and_those_of_github_by_version(path):
    used = re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))
    assert used
    assert [line for line in used if not PINNED.fullmatch(line)] == []


@each_workflow
def test_a_workflow_may_read_and_a_job_asks_for_more(path):
    data = read(path)
    assert data["permissions"] == {"contents": "read"}
    asking = {name: set(job["permissions"]) for name, job in data["jobs"].items() if "permissions" in job}
    wanted = {"publish": {"id-token", "attestations"}, "announce": {"contents"}, "deploy": {"pages", "id-token"}}
    assert all(asked == wanted[name] for name, asked in asking.items())


@each_workflow
def test_no_workflow_has_a_secret_or_puts_an_expression_into_a_command(path):
    assert "secrets." not in path.read_text(encoding="utf-8")
    steps = [step for job in read(path)["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "${{" in step.get("run", "")] == []


@each_workflow
def test_a_job_ends_and_leaves_no_credentials(path):
    for job in read(path)["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_a_release_is_built_with_all_checks_and_published_by_trust():
    jobs = read(GITHUB / "workflows" / "release.yml")["jobs"]
    assert "make package" in [step.get("run") for step in jobs["build"]["steps"]]
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["environment"]["name"] == "release"
    (last,) = [step for step in jobs["publish"]["steps"] if step["uses"].startswith("pypa/")]
    assert "with" not in last  # no password: the index trusts the workflow
    assert [step["uses"] for step in jobs["publish"]["steps"]].index("actions/attest-build-provenance@v4") == 1


@pytest.mark.parametrize("target", re.findall(r"run: make (\S+)", "".join(path.read_text() for path in WORKFLOWS)))
def test_a_workflow_runs_a_target_of_the_makefile(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_asks_for_what_is_needed(path):
    form = read(path)
    names = [field["id"] for field in form["body"]]
    assert len(set(names)) == len(names)
    assert any(field.get("validations", {}).get("required") for field in form["body"])


@left_to_package("the schemas come with a program of the extra `package`")
@pytest.mark.parametrize("schema", list(SCHEMAS))
def test_the_files_follow_their_schemas(schema):
    run(program("check-jsonschema"), "--builtin-schema", f"vendor.{schema}", *map(str, SCHEMAS[schema]))


@left_to_package("zizmor is a program of the extra `package`")
def test_zizmor_finds_no_weakness_in_the_workflows():
    run(program("zizmor"), "--offline", "--no-progress", str(GITHUB))


@left_to_package("actionlint is a program that the workflow `test` installs")
@pytest.mark.skipif(program("actionlint") is None, reason="needs the program actionlint: .github/actionlint.txt")
def test_actionlint_finds_no_fault_in_the_workflows():
    run(program("actionlint"), *map(str, WORKFLOWS))
