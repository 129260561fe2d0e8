"""Print tables, plain lines and JSON on standard output, in the columns and the letters that it can show."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from tnadapt._command.streams import written
from tnadapt._command.table import lay_out
from tnadapt._progress import is_terminal
from tnadapt._table import Row, columns_of, wrap

__all__: list[str] = []

UNLIMITED = 1_000_000  # columns if the output is not a terminal: a file or a pipe gets every line whole
USUAL = 80  # columns of a terminal that does not say how many it has
SYMBOLS = {"●": "o", "─": "-", "│": "|", "┼": "+", "▒": "#", "…": "~", "≤": "<="}
IN_ASCII = str.maketrans(SYMBOLS)


class Output(Console):
    """A console that leaves a closed pipe to the command, which chooses the exit status."""

    def on_broken_pipe(self) -> None:
        """Raise the error again."""
        raise BrokenPipeError


def output() -> Console:
    """Return the console of standard output, as wide as the terminal, or as the variable COLUMNS says."""
    is_shown = is_terminal(sys.stdout)
    fallback = USUAL if is_shown else UNLIMITED
    asked = bool(os.environ.get("COLUMNS", ""))
    width = shutil.get_terminal_size((fallback, 0)).columns if asked or is_shown else UNLIMITED
    return Output(width=width, soft_wrap=True, highlight=False)


def is_ascii_only(encoding: str | None) -> bool:
    """Return whether a stream cannot show the symbols of a diagram: its encoding lacks them, or the locale is C."""
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    locale = next((name for name in names if name), "")
    if locale in ("C", "POSIX") and not os.environ.get("PYTHONIOENCODING"):
        return True  # Python itself writes UTF-8 in this locale
    try:
        "".join(SYMBOLS).encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return True
    return False


def plain(text: str, encoding: str | None) -> str:
    """Return a text as a stream of this encoding can show it. Other letters become escapes, as in repr()."""
    codec = encoding or "utf-8"
    if is_ascii_only(encoding):
        text, codec = text.translate(IN_ASCII), "ascii" if codec.lower().startswith("utf") else codec
    return text.encode(codec, "backslashreplace").decode(codec)


def print_lines(console: Console, *lines: str, hang: int = 2) -> None:
    """Print lines of plain text. One that is too wide continues below, indented by `hang` more columns."""
    shown = []
    for line in "\n".join(lines).split("\n"):
        text = plain(line, console.encoding)
        indent = len(text) - len(text.lstrip(" ")) + hang
        shown += wrap(text, console.width, hang=" " * indent)
    _print(console, Text("\n".join(shown)))


def print_table(console: Console, rows: Sequence[Row], *, left: int = 1) -> None:
    """Print a table whose first row is the header. The first `left` columns are left-aligned, others right-aligned."""
    cells = [[plain(cell, console.encoding) for cell in row] for row in rows]
    _print(console, Text("\n").join(lay_out(cells, left=left, columns=console.width)))


def print_diagram(console: Console, text: str) -> None:
    """Print a diagram, or how wide it is if it does not fit."""
    wide = max(map(columns_of, text.split("\n")))
    if wide > console.width:
        print_lines(
            console,
            f"The diagram takes {wide} columns, more than the {console.width} of this terminal. "
            "Write it into a file instead: tnadapt draw ... -o diagram.svg",
        )
    else:
        print_lines(console, text)


def print_json(data: Any) -> int:
    """Print data as JSON and return exit status 0."""
    with written():
        print(json.dumps(data, indent=1))
    return 0


def _print(console: Console, text: Text) -> None:
    with written():
        console.print(text)
