"""Let another process load the files of trained adapters and answer: what a program that uses the result does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rows import Row
from sentences import DataError

INTERRUPTED = 130  # exit status after Ctrl-C


def answered_again(rows: Sequence[Row], folder: Path, program: Path, options: Sequence[str]) -> list[Row]:
    """Load each file of `folder` in another process, and count the answers that are the same there.

    `program` takes the files and prints a JSON list of answers for each. Raises DataError if it fails.
    """
    command = [sys.executable, str(program), *(str(folder / row.file) for row in rows), *options]
    ran = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    if ran.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    if ran.returncode:
        raise DataError(f"{program.name} ended with status {ran.returncode}: {' '.join(command)}")
    again = [json.loads(line) for line in ran.stdout.splitlines()]
    return [
        replace(row, same=sum(left == right for left, right in zip(row.answers, answers, strict=True)))
        for row, answers in zip(rows, again, strict=True)
    ]
