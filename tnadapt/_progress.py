"""One line at a time on standard error that says how far work is, on a terminal alone; `watched` shows a bar there."""

import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO, TypeVar, cast

__all__ = ["Spared", "is_terminal", "reserved", "watched"]

T = TypeVar("T")
DELAY = 1.0  # seconds before a bar appears, so that fast work shows none
RANKS = ("RANK", "LOCAL_RANK")  # how launchers of several processes number them

DUMB = ("dumb", "unknown")  # terminals that cannot erase a line
OFF = ("", "0", "false")  # values of CI, or of a rank, with which a line is shown

_reserved = 0  # blocks that hold the line now: the first shows it


@contextmanager
def watched(items: Collection[T], what: str) -> Iterator[Iterable[T]]:
    """Give items to a `with` block, whose iteration shows a bar on standard error once it has taken a second.

    Where no line may be shown (see `reserved`), they are the items themselves, so that nothing is imported and a step
    costs nothing. However the block ends, the bar is gone after it.

    Args:
        items: what is worked on, one after another.
        what: what is done, such as "merge".
    """
    if len(items) <= 1:
        yield items
        return
    with reserved() as is_shown, ExitStack() as bars:
        yield _shown(items, what, bars) if is_shown else items


@contextmanager
def reserved() -> Iterator[bool]:
    """Reserve standard error for a line that is erased later, and give whether a `with` block may show one.

    It may on a terminal that can erase a line, and if no block around it has reserved it. It may not where CI is set,
    or on a process of several that is not the first.
    """
    global _reserved  # noqa: PLW0603  (one terminal, one line)
    is_free = not _reserved
    _reserved += 1
    try:
        yield is_free and _can_erase()
    finally:
        _reserved -= 1


class Spared:
    """A stream for a line that is erased: a terminal that goes away takes the line with it, and not the work.

    A write that fails would stay in the buffer and fail again at the end of the interpreter, so the terminal is asked
    before each.
    """

    def __init__(self, stream: Any) -> None:
        """Keep the stream, of which everything but writing is taken as it is."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Return what else the stream has, such as its encoding."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write to the stream while it is a terminal. Returns the length of the text."""
        with suppress(OSError):
            if is_terminal(self._stream):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream while it is a terminal."""
        with suppress(OSError):
            if is_terminal(self._stream):
                self._stream.flush()


def is_terminal(stream: Any) -> bool:
    """Return whether a stream is a terminal: no file, no stream that only writes, no closed one, and not None."""
    try:
        return bool(stream.isatty()) and not getattr(stream, "closed", False)
    except (AttributeError, ValueError):
        return False


def _can_erase() -> bool:
    is_quiet = any(os.environ.get(name, "").lower() not in OFF for name in ("CI", *RANKS))
    return is_terminal(sys.stderr) and not is_quiet and os.environ.get("TERM", "").lower() not in DUMB


def _shown(items: Collection[T], what: str, bars: ExitStack) -> Iterator[T]:
    """Yield the items, and begin the bar between two of them when the delay is over."""
    began, bar = time.monotonic(), None
    for number, item in enumerate(items):
        if bar is None and time.monotonic() - began >= DELAY:
            from rich.console import Console  # noqa: PLC0415  (a tenth of a second; most work is faster)
            from rich.progress import Progress  # noqa: PLC0415

            stream = cast(TextIO, Spared(sys.stderr))
            bar = bars.enter_context(Progress(console=Console(file=stream, force_terminal=True), transient=True))
            bar.add_task(what, total=len(items))
        if bar is not None:
            bar.update(bar.task_ids[0], completed=number)
        yield item
