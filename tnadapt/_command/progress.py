"""A line on standard error that says what is computed. It is shown on a terminal only, and erased at the end."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from tnadapt._command.terminal import is_ascii_only
from tnadapt._progress import Spared, reserved

__all__: list[str] = []

BESIDE, BESIDE_BAR = 3, 24  # columns left to the spinner, or to it, a bar and the time


class Line:
    """The line of one computation, in a `with` statement: erased at its end, also by an error or Ctrl-C."""

    def __init__(self, first: str, *, bar: bool = False) -> None:
        """Prepare the line with its first text, and with a bar if the amount of work is known."""
        console = Console(file=cast(TextIO, Spared(sys.stderr)), force_terminal=True)  # it is shown on no other stream
        self._room = max(console.width - (BESIDE_BAR if bar else BESIDE), 1)
        text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
        columns: list[ProgressColumn] = [SpinnerColumn("line" if is_ascii_only(console.encoding) else "dots"), text]
        if bar:
            columns += [BarColumn(), TimeElapsedColumn()]
        self._progress = Progress(*columns, console=console, transient=True, redirect_stdout=False)
        self._task = self._progress.add_task(first[: self._room], total=None)
        self._is_shown = False
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self._is_shown = self._held.enter_context(reserved())
        if self._is_shown:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._held:
            if self._is_shown:
                self._progress.stop()

    def tell(self, text: str) -> None:
        """Show another text."""
        self._progress.update(self._task, description=text[: self._room])

    def advance(self, text: str, *, completed: float, total: float) -> None:
        """Show another text, and how much of the work is done."""
        self._progress.update(self._task, description=text[: self._room], completed=completed, total=total)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Erase the line while something else is printed."""
        if not self._is_shown:
            yield
            return
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()
