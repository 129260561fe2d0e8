"""Mutation tests of all three packages, by sample: each mutant is judged by the tests that mirror its file.

`make mutants` runs it; docs/development/mutants.md explains it. Cosmic Ray makes the mutants, in temporary copies of
the tree. A place is a token that it can change; one change of each drawn place is judged. Changes of annotations and
those that are no Python are left out. A seed gives the same sample until the code or Cosmic Ray changes.
"""

import argparse
import ast
import compileall
import difflib
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import mutate_code, use_mutation
from cosmic_ray.testing import run_tests
from cosmic_ray.work_item import MutationSpec, TestOutcome

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = {"tnadapt": 280, "tnadapt_torch": 70, "tnadapt_jax": 70}  # mutants of a package by default
LEAST = 2  # mutants of a file, or all there are
MEMORY = 6 * 2**30  # bytes of one run of the tests: a size that became a power may ask for any number
COPIED = ("tnadapt", "tnadapt_torch", "tnadapt_jax", "tests", "docs")

# Faces hold no logic; the others hold data, or are asked by tests of processes.
SKIPPED = ("__init__.py", "__main__.py", "tnadapt/_version.py", "_hosts/configs.py", "tnadapt_torch/trainer.py")

# Tests of demos, of benchmarks, of a compiler and of several processes. `_starts_one` finds single tests of processes.
LEFT_OUT = ["demo", "benchmark", "compile", "compile_families", "distributed", "processes", "sharding"]

# Files of the core whose tests do not lie in the folder of their name.
ELSEWHERE = {
    "tnadapt/_errors.py": "core/language core/hosts",
    "tnadapt/_frozen.py": "core/language",
    "tnadapt/_signature.py": "core/hosts core/language",
    "tnadapt/_table.py": "core/report core/language",
    "tnadapt/initializers.py": "core/language/test_initializer.py core/language",
}

# Tests of the PyTorch binding lie by subject: those of a file, likely killers first, where it has none of its own name.
TORCH = {
    "_attach": "attach mistakes several starts",
    "_files": "files peft_folder starts",
    "_host/find": "find attach blocks",
    "_host/hosted": "starts files attach merge",
    "_host/merge": "merge merge_order",
    "_host/saved": "files identity",
    "_host/weight": "find merge inputs blocks",
    "_run/blocks": "blocks inputs",
    "_run/call": "call inputs blocks attach",
    "_run/choices": "layout copies strided cost",
    "_run/layout": "layout copies cost inputs blocks",
    "_run/lower": "cost inputs blocks",
    "_run/maps": "maps starts attach blocks",
    "_run/refs": "rows identity",
    "_run/site": "inside inputs rows blocks cost",
    "_run/ways": "layout copies",
    "_state/factors": "identity rows",
    "_state/updates": "attach several identity",
    "optim/_preconditioned": "preconditioned resize",
    "optim/_rite": "rite resize",
    "optim/_trained": "rite preconditioned",
    "_state/state": "several identity rows files",
}

# What every file of the core is asked last: the words of every public function, all laws on ten random specs
# of each start.
LAST = (
    "tests/core/test_signature.py",
    "tests/golden",
    "tests/laws/test_laws.py::test_a_random_spec_satisfies_every_law",
)
Places = dict[str, dict[str, list[MutationSpec]]]  # file -> place -> its changes
COLUMNS = ("killed", "killed in setup", "timeout", "survived", "failed to run")


@dataclass(frozen=True)
class Judged:
    """What became of a mutant, the test that killed it, and its diff."""

    mutation: MutationSpec
    became: str
    by: str
    diff: str


def main() -> None:
    """Draw the sample, judge every mutant, print the table and the survivors."""
    asked = _asked()
    start = time.monotonic()
    os.environ |= {"HYPOTHESIS_PROFILE": "mutants", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        places = _places(asked.packages, asked.files)
        chosen = _chosen(places, asked.sample, asked.seed, asked.only)
        print(f"{len(chosen)} mutants of {sum(map(len, places.values()))} places", flush=True)
        with ProcessPoolExecutor(asked.processes, initializer=_settle, initargs=(folder,)) as pool:
            wholes = {_whole(tests) for mutant in chosen for tests in _stages(mutant.module_path)}
            try:
                limits = dict(zip(wholes, pool.map(_limit, wholes), strict=True))
            except AssertionError as error:
                sys.exit(str(error))
            waiting = [pool.submit(_judge, one, limits) for one in chosen]
            judged = [_told(done.result(), number) for number, done in enumerate(as_completed(waiting), 1)]
    print("\n".join(["", *_rows(places, judged), "", *_survivors(judged)]))
    print(f"Cosmic Ray {version('cosmic-ray')}, seed {asked.seed}, {(time.monotonic() - start) / 60:.0f} minutes")


def _asked() -> argparse.Namespace:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--packages", nargs="+", choices=SAMPLE, default=list(SAMPLE), help="default: all three")
    words.add_argument("--files", nargs="+", metavar="FILE", help="draw from these files of the packages only")
    words.add_argument("--processes", type=int, default=2, help="mutants judged at a time (default: %(default)s)")
    words.add_argument("--sample", type=int, default=sum(SAMPLE.values()), help="mutants in all (default: %(default)s)")
    words.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    words.add_argument("--only", nargs="+", metavar="FILE:LINE:COLUMN", help="judge the mutants of these places only")
    return words.parse_args()


# ---------------------------------------------------------------- the sample


def _places(packages: list[str], files: list[str] | None) -> Places:
    """File -> place -> its changes, in the order of the places; what lies in an annotation is no place."""
    found: Places = {}
    known = [path for package in packages for path in sorted(Path(package).rglob("*.py"))]
    if missing := {*(files or ())} - {path.as_posix() for path in known}:
        sys.exit(f"--files: expected files of the packages, got {', '.join(sorted(missing))}.")
    for path in known if files is None else (path for path in known if path.as_posix() in files):
        if not path.as_posix().endswith(SKIPPED):
            annotations = list(_annotations(path.read_text()))
            places: dict[str, list[MutationSpec]] = {}
            for one in sorted(_mutations(path), key=lambda one: (one.start_pos, one.operator_name, one.occurrence)):
                if not any(first <= one.start_pos < last for first, last in annotations):
                    places.setdefault(_place(one), []).append(one)
            if places:
                found[path.as_posix()] = places
    return found


def _mutations(path: Path) -> Iterator[MutationSpec]:
    """What Cosmic Ray's own `init` finds, which walks the tree once for each of its 200 operators."""
    nodes = list(ast_nodes(get_ast_from_path(path)))
    for name in plugins.operator_names():
        if not plugins.get_operator(name).arguments():
            operator = plugins.get_operator(name)()
            positions = (position for node in nodes for position in operator.mutation_positions(node))
            for occurrence, (start, end) in enumerate(positions):
                yield MutationSpec(str(path), name, occurrence, start, end)


def _annotations(code: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where each annotation begins and ends."""
    for node in ast.walk(ast.parse(code)):
        for field in ("annotation", "returns"):
            if (found := getattr(node, field, None)) is not None:
                yield (found.lineno, found.col_offset), (found.end_lineno, found.end_col_offset)


def _place(mutation: MutationSpec) -> str:
    line, column = mutation.start_pos
    return f"{mutation.module_path.as_posix()}:{line}:{column}"


def _chosen(places: Places, sample: int, seed: int, only: list[str] | None) -> list[MutationSpec]:
    """One mutant of each drawn place. A file's draw does not depend on the other files that were asked for."""
    if only is not None:
        if missing := set(only) - {place for found in places.values() for place in found}:
            sys.exit(
                f"--only: expected places of the packages, got {', '.join(sorted(missing))}.\nSee the table's log."
            )
        drawn = [_change(found[place], seed) for found in places.values() for place in found if place in only]
        return [one for one in drawn if one is not None]
    sizes = _sizes(places, sample)
    chosen = []
    for name, found in places.items():
        order = random.Random(f"{seed} {name}").sample(list(found), len(found))
        changes = (_change(found[place], seed) for place in order)
        real = (one for one in changes if one is not None)
        chosen += [one for one, _ in zip(real, range(sizes[name]), strict=False)]
    random.Random(seed).shuffle(chosen)  # so that a run that is cut short is a sample too
    return chosen[:sample]


def _sizes(places: Places, sample: int) -> dict[str, int]:
    """Mutants of each file: LEAST, and a part of the rest of its package's share by its number of places."""
    sizes = {}
    for package, share in SAMPLE.items():
        files = {name: len(found) for name, found in places.items() if name.split("/")[0] == package}
        rest = max(0, share * sample / sum(SAMPLE.values()) - LEAST * len(files))
        sizes |= {name: round(LEAST + rest * size / sum(files.values())) for name, size in files.items()}
    return sizes


def _change(changes: list[MutationSpec], seed: int) -> MutationSpec | None:
    """One of a place's changes that is Python and means something else."""
    path = changes[0].module_path
    for one in random.Random(f"{seed} {_place(changes[0])}").sample(changes, len(changes)):
        changed = mutate_code(path.read_text(), plugins.get_operator(one.operator_name)(), one.occurrence)
        if changed is not None and _meaning(changed) not in (None, _meaning(path.read_text())):
            return one
    return None


@cache
def _meaning(code: str) -> str | None:
    """The syntax tree; None for what is no Python."""
    try:
        return ast.dump(ast.parse(code))
    except SyntaxError:
        return None


# ---------------------------------------------------------------- the tests of a file


@cache
def _stages(path: Path) -> tuple[tuple[str, ...], ...]:
    """The near tests of a file, its mirror first, and those that are asked where these pass."""
    package, *rest = path.as_posix().split("/")
    if package == "tnadapt_torch":
        if rest[0] == "peft":
            return (_files("tests/peft", first="test_bridge.py"),)
        subjects = TORCH.get("/".join(rest).removesuffix(".py"), path.stem).split()
        named = [f"{place}/test_{subject}.py" for subject in subjects for place in ("tests/torch", "tests/torch/seam")]
        near = tuple(name for name in named if Path(name).exists())
        rest_of_them = tuple(one for one in _files("tests/torch") if one not in near)
        return (near, rest_of_them) if near else (rest_of_them,)
    if package == "tnadapt_jax":
        return (_files("tests/jax", first=f"test_{path.stem.removeprefix('_')}.py"),)
    if path.as_posix() in ELSEWHERE:
        return _files(*(f"tests/{name}" for name in ELSEWHERE[path.as_posix()].split())), LAST
    if rest[0] == "testing":
        return (_files("tests/laws", first="test_faults.py"),)
    return _files(f"tests/core/{rest[0].removeprefix('_')}", first=f"test_{path.stem}.py"), LAST


@cache
def _whole(tests: tuple[str, ...]) -> tuple[str, ...]:
    """All tests of the folders of these: their time without a mutant is taken once for many stages."""
    return tests if tests == LAST else _files(*_folders(tests))


def _folders(tests: tuple[str, ...]) -> list[str]:
    return sorted({Path(name).parent.as_posix() for name in tests})


def _files(*places: str, first: str = "") -> tuple[str, ...]:
    """The files of tests in these folders, the mirror first; a file stands for itself."""
    found = [
        path for place in map(Path, places) for path in ([place] if place.suffix else sorted(place.glob("test_*.py")))
    ]
    asked = dict.fromkeys(path.as_posix() for path in found if path.stem.removeprefix("test_") not in LEFT_OUT)
    return tuple(sorted(asked, key=lambda name: not name.endswith(f"/{first}")))


def _starts_one(file: str) -> Iterator[str]:
    """The tests of a file that start a process."""
    for node in ast.parse(Path(file).read_text()).body:
        if isinstance(node, ast.FunctionDef) and "subprocess." in ast.unparse(node):
            yield f"{file}::{node.name}"


# ---------------------------------------------------------------- the runs


def _settle(folder: str) -> None:
    """A copy of the tree for this process, compiled, so that each run compiles only the file that was changed."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    copy = Path(tempfile.mkdtemp(dir=folder))
    for name in COPIED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    os.chdir(copy)
    compileall.compile_dir(".", quiet=1)


def _command(tests: tuple[str, ...]) -> str:
    files = dict.fromkeys(name.split("::")[0] for name in tests if name.endswith(".py"))
    left_out = " ".join(f"--deselect {name}" for file in files for name in _starts_one(file))
    return f"{sys.executable} -m pytest -x -q -p no:cacheprovider -m 'not slow' {' '.join(tests)} {left_out}"


def _limit(tests: tuple[str, ...]) -> float:
    """Seconds that these tests may take with a mutant. They pass without one, or there is no judgement."""
    start = time.monotonic()
    outcome, output = run_tests(_command(tests), None)
    if outcome != TestOutcome.SURVIVED:
        raise AssertionError(f"{' '.join(tests)}: expected tests that pass without a mutant, got failures.\n{output}")
    taken = time.monotonic() - start
    print(f"{taken:.0f} s without a mutant: {' '.join(_folders(tests))}", flush=True)
    return 30 + 3 * taken


def _judge(mutant: MutationSpec, limits: dict[tuple[str, ...], float]) -> Judged:
    """Run the stages of a mutant's file, each in a fresh interpreter, until one of them kills it."""
    operator = plugins.get_operator(mutant.operator_name)()
    with use_mutation(mutant.module_path, operator, mutant.occurrence) as (before, after):
        diff = "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1))
        for tests in _stages(mutant.module_path):
            outcome, output = run_tests(_command(tests), limits[_whole(tests)])
            if outcome != TestOutcome.SURVIVED:
                break
    told = (line.partition(" ")[2].split(" - ")[0] for line in output.splitlines() if line.startswith("FAILED "))
    return Judged(mutant, _became(outcome, output), next(told, ""), diff)


def _became(outcome: TestOutcome, output: str) -> str:
    if outcome == TestOutcome.SURVIVED:
        return "survived"
    if outcome != TestOutcome.KILLED:
        return "failed to run"
    if output == "timeout":
        return "timeout"
    return "killed" if "\nFAILED " in output else "killed in setup"


# ---------------------------------------------------------------- what is printed


def _told(judged: Judged, number: int) -> Judged:
    name = judged.mutation.operator_name.split("/")[-1]
    print(f"{number} {_place(judged.mutation)} {name}: {judged.became} {judged.by}".rstrip(), flush=True)
    if judged.became in ("survived", "failed to run"):
        print(judged.diff, flush=True)
    return judged


def _rows(places: Places, judged: list[Judged]) -> Iterator[str]:
    """The figures as a table: a row for each package, then one for each file, then one for all."""
    counts: dict[str, Counter[str]] = {}
    for one in judged:
        name = one.mutation.module_path.as_posix()
        for row in (name.split("/")[0], name, "all"):
            counts.setdefault(row, Counter())[one.became] += 1
    yield f"| | places | mutants | {' | '.join(COLUMNS)} |"
    yield f"|---|{'---:|' * (len(COLUMNS) + 2)}"
    for row in sorted(counts, key=lambda row: (row == "all", "/" in row, row)):
        size = sum(len(found) for name, found in places.items() if row in ("all", name, name.split("/")[0]))
        figures = [size, counts[row].total(), *(counts[row][column] for column in COLUMNS)]
        yield f"| `{row}` | {' | '.join(map(str, figures))} |"


def _survivors(judged: list[Judged]) -> Iterator[str]:
    for one in sorted(judged, key=lambda one: _place(one.mutation)):
        if one.became in ("survived", "failed to run"):
            yield f"{_place(one.mutation)} {one.became}\n{one.diff}\n"


if __name__ == "__main__":
    main()
