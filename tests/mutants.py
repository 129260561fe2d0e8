"""Mutants of the structural rooms: one for each place in the code, each judged by the tests of its room.

`make mutants` runs it. Cosmic Ray makes the mutants, in a copy of the package and its tests; a place is a token that it
can change, and one change of each place is drawn. Changes of annotations, and those that are no Python, are left out:
no test is needed to kill them. The sample is the same at every run, until a room or Cosmic Ray changes.
"""

import argparse
import ast
import math
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from cosmic_ray import plugins
from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test, mutate_code
from cosmic_ray.testing import run_tests
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkResult

ROOMS = {  # room -> the files of tests/core that ask it, its own first
    "_notation": "notation spec groups",
    "_spec": "spec spec_value groups network count init apply",
    "_network": "network groups spec_value count init apply rank",
    "_count": "count spec_value",
    "_rank": "rank spec_value",
    "_plan": "plan spec_value run",
}
OTHERS = "tests/golden tests/laws/test_laws.py::test_a_random_spec tests/laws/test_laws.py::test_a_random_centered_spec"
LEAST = 15  # mutants of a room, or all there are
MEMORY = 6 * 2**30  # bytes of one run of the tests: a size that became a power may ask for any number


def main() -> None:
    """Draw the sample, judge every mutant, print the table and the survivors."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--sample", type=int, default=320, help="mutants over all rooms (default: %(default)s)")
    words.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    words.add_argument("--only", nargs="+", metavar="ROOM:LINE:COLUMN", help="judge the mutants of these places only")
    asked = words.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.environ |= {"HYPOTHESIS_PROFILE": "mutants", "OPENBLAS_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for name in ("tnadapt", "tests"):
            shutil.copytree(root / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(root / "pyproject.toml", folder)
        os.chdir(folder)
        start = time.monotonic()
        draw = random.Random(asked.seed)
        table = {room: _drawn(room, draw) for room in ROOMS}
        if asked.only:
            chosen = {room: [one for one in table[room] if _place(one) in asked.only] for room in ROOMS}
        else:
            chosen = {room: _share(table, room, asked.sample, draw) for room in ROOMS}
        judged = {room: judge(room, mutants) for room, mutants in chosen.items() if mutants}
        print("\n".join(["", *rows(table, judged), ""]))
        print(f"Cosmic Ray {version('cosmic-ray')}, {(time.monotonic() - start) / 60:.0f} minutes")


def _place(mutation: MutationSpec) -> str:
    line, column = mutation.start_pos
    return f"{mutation.module_path.stem}:{line}:{column}"


def _drawn(room: str, draw: random.Random) -> list[MutationSpec]:
    """One mutant for each place of a room, in the order of the places."""
    path = Path("tnadapt", f"{room}.py")
    code = path.read_text()
    places: dict[tuple[int, int], list[MutationSpec]] = {}
    with use_db("session.sqlite") as session:
        init([path], session, {})
        for item in session.work_items:
            places.setdefault(item.mutations[0].start_pos, []).append(item.mutations[0])
    plain = _meaning(code)
    drawn = []
    for _, mutants in sorted(places.items()):
        mutants.sort(key=lambda one: (one.operator_name, one.occurrence))
        for mutant in draw.sample(mutants, len(mutants)):
            changed = mutate_code(code, plugins.get_operator(mutant.operator_name)(), mutant.occurrence)
            if _meaning(changed) not in (plain, None):
                drawn.append(mutant)
                break
    return drawn


def _meaning(code: str) -> str | None:
    """The syntax tree without its annotations; None for what is no Python."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if hasattr(node, field):
                setattr(node, field, None)
    return ast.dump(tree)


def _share(table: dict[str, list[MutationSpec]], room: str, sample: int, draw: random.Random) -> list[MutationSpec]:
    """A room's part of the sample, by its number of places."""
    mutants = table[room]
    fair = math.ceil(sample * len(mutants) / sum(map(len, table.values())))
    chosen = draw.sample(range(len(mutants)), min(len(mutants), max(LEAST, fair)))
    return [mutants[number] for number in sorted(chosen)]


def judge(room: str, mutants: list[MutationSpec]) -> list[str]:
    """What became of each mutant of a room. The tests pass without a mutant, or there is no judgement."""
    files = " ".join(f"tests/core/test_{name}.py" for name in ROOMS[room].split())
    command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider {files} {OTHERS}"
    start = time.monotonic()
    outcome, output = run_tests(command, None)
    if outcome != TestOutcome.SURVIVED:
        sys.exit(f"{room}: its tests fail without a mutant\n{output}")
    limit = 30 + 4 * (time.monotonic() - start)
    judged = []
    for mutant in mutants:
        result = mutate_and_test([mutant], command, limit)
        became = _became(result)
        by = next((line.split()[1] for line in result.output.splitlines() if line.startswith("FAILED ")), "")
        print(f"{_place(mutant)} {mutant.operator_name.split('/')[-1]}: {became} {by}".rstrip(), flush=True)
        if became in ("survived", "failed to run"):
            print(result.diff or result.output, flush=True)
        judged.append(became)
    return judged


def _became(result: WorkResult) -> str:
    if result.test_outcome == TestOutcome.SURVIVED:
        return "survived"
    if result.test_outcome != TestOutcome.KILLED:
        return "failed to run"
    if result.output == "timeout":
        return "timeout"
    return "killed" if "\nFAILED " in result.output else "killed in setup"


def rows(table: dict[str, list[MutationSpec]], judged: dict[str, list[str]]) -> Iterator[str]:
    """The figures as a table: one row a room, and one for all."""
    columns = ("killed", "killed in setup", "timeout", "survived", "failed to run")
    yield f"| room | places | mutants | {' | '.join(columns)} |"
    yield f"|---|{'---:|' * (len(columns) + 2)}"
    whole = [became for found in judged.values() for became in found]
    places = sum(len(table[room]) for room in judged)
    lines = [*((f"`{room}`", len(table[room]), found) for room, found in judged.items()), ("all", places, whole)]
    for name, places, found in lines:
        yield f"| {name} | {places} | {len(found)} | {' | '.join(str(found.count(what)) for what in columns)} |"


if __name__ == "__main__":
    main()
