"""Draw docs/evidence/speed.md from the records in results/speed.

python benchmarks/page.py                      the page of the docs
python benchmarks/page.py FOLDER PAGE          that of other records
"""

import argparse
import ast
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from leaderboard.records import replacing
from recording import FOLDER, Record, RecordError, Table, read_all, version

__all__ = ["page_of"]

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "evidence" / "speed.md"
FIRST = ("regimes", "peers", "compiled", "blocks", "passes", "calibrate")  # the tables of the others are folded
HEAD = """<!-- drawn by benchmarks/page.py; do not edit -->
# Speed

Drawn from the records in `results/speed/`. `make bench` runs the programs, writes their records and draws this page;
`benchmarks/gpu.sh` writes the records of a machine with a GPU. Ratios are of medians, measured in the same process with
interleaved rounds: a "/" before a name divides the time of tnadapt by that of the name. What the figures mean, and
older ones, are in [Performance](../explanation/performance.md). Tables of the programs further down open by a click.
"""


def page_of(records: Sequence[Record], current: str) -> str:
    """Return the page. A record of another version of tnadapt than the current one is labelled with its version."""
    parts = [HEAD]
    for one in sorted(records, key=_place):
        heading = ", ".join(word for word in (one.program, one.device, one.label) if word)
        parts += [f"## {heading}", f"{about(one.program)}\n\n{_made(one, current)}"]
        for table in one.tables:
            title = [f"### {heading}: {table.title}"] * bool(table.title)
            parts += [*title, _markdown(table)] if _is_first(one) else [_folded(table)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _is_first(record: Record) -> bool:
    """Return whether the page shows the tables of a record; one with a label is an earlier state, to compare with."""
    return record.program in FIRST and not record.label


def _folded(table: Table) -> str:
    """Return a table that opens by a click, so that the page is not too long to read."""
    title = table.title or f"{len(table.rows)} rows"
    return f'<details markdown="1"><summary>{title}</summary>\n\n{_markdown(table)}\n\n</details>'


def _place(record: Record) -> tuple[int, str, str, str]:
    first = FIRST.index(record.program) if _is_first(record) else len(FIRST)
    return first, record.program, record.device, record.label


def about(program: str) -> str:
    """Return the first line of a program's docstring, and its last paragraph if it has more than one."""
    path = HERE / f"{program}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.exists() else None
    paragraphs = [one for one in (text or "").split("\n\n") if not one.startswith(("    ", "python "))]
    return " ".join(line for one in dict.fromkeys(paragraphs) for line in one.splitlines())


def _made(record: Record, current: str) -> str:
    """Return with what a record was made."""
    own = record.versions.get("tnadapt", "")
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    parts = [record.machine, f"{record.cores} cores", f"{record.threads} threads" if record.threads else ""]
    parts += [record.dtype, f"medians of {record.rounds} rounds" if record.rounds > 1 else ""]
    busy = record.load >= 0.5 and record.rounds > 1  # what is counted does not depend on it
    parts += ["seconds of the processor"] * (record.clock == "cpu")
    parts += [f"**while {record.load:.1f} other processes were running**" if busy else ""]
    made = f"*{', '.join(part for part in parts if part)}. Measured on {record.date} with {versions}"
    made += f"; commit {record.commit}.*" if record.commit else ".*"
    return made if own == current else f"**Of another version: tnadapt {own}.** {made}"


def _markdown(table: Table) -> str:
    heads = list(table.rows[0])
    lines = [heads, ["---:" if head in table.units else "---" for head in heads]]
    digits = {head: _digits([row.get(head) for row in table.rows]) for head in heads}
    lines += [[_cell(row.get(head, "-"), digits[head]) for head in heads] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _digits(column: Iterable[Any]) -> int:
    """Return how many digits to write behind the point in a column: fewer where its numbers are large."""
    least = min((abs(value) for value in column if isinstance(value, float)), default=0.0)
    return 0 if least >= 1000 else 1 if least >= 100 else 2


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main(words: Iterable[str] | None = None) -> int:
    """Write the page, or say why not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("page", nargs="?", type=Path, default=PAGE)
    options = parser.parse_args(words)
    try:
        text = page_of(read_all(options.folder), version())
        with replacing(options.page) as draft:
            draft.write_text(text, encoding="utf-8")
    except (RecordError, OSError) as error:
        print(f"page: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
