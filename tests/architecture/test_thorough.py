"""What leaves the default run has a target that runs it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = (Path(__file__).name, "thorough.py")
FILES = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path.name not in HERE]
WORDS = ("IS_THOROUGH", "each_kind", "left_to_laws", "left_to_leaderboard", "left_to_package")


def recipe_of(target):
    """Return the lines of the Makefile that set variables of a target and run it."""
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith(f"{target}:"))
    return "\n".join(lines[first : lines.index("", first)])


@pytest.mark.parametrize("word", WORDS)
def test_a_file_with_more_to_run_is_one_that_a_target_runs(word):
    """By an import that the Makefile looks for, in a file of tests: not in a worker, which no target runs."""
    found = [path for path in FILES if re.search(rf"\b{word}\b", path.read_text(encoding="utf-8"))]
    assert found
    for path in found:
        assert path.name.startswith("test_"), path
        assert re.search(rf"^from tests\.thorough import .*\b{word}\b", path.read_text(encoding="utf-8"), re.M), path
        assert word != "left_to_leaderboard" or path.parent.name == "leaderboard", path
        assert word != "left_to_package" or path.parent.name == "packaging", path


def test_the_targets_run_these_files():
    assert 'grep -rl "^from tests.thorough import" --include="test_*.py" tests' in recipe_of("laws")
    assert "HYPOTHESIS_PROFILE = laws" in recipe_of("laws")
    assert "$(MORE)" in recipe_of("laws")
    assert "LEADERBOARD = quick" in recipe_of("leaderboard-quick")
    assert "tests/leaderboard" in recipe_of("leaderboard-quick")
    assert "PACKAGE = dist" in recipe_of("package")
    assert "tests/packaging" in recipe_of("package")


def test_no_test_asks_for_a_profile_by_itself():
    """Then no target would find it. A number of examples for each profile is another matter."""
    asked = re.compile(r"""PROFILE("[^"]*\))? [!=]= "laws"|"(LEADERBOARD|PACKAGE)" (not )?in""")
    found = [path.name for path in FILES if asked.search(path.read_text(encoding="utf-8"))]
    assert found == ["conftest.py"]  # that of all tests, which sets up the compiler of JAX
