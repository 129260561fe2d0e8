"""One progress bar for work that takes long, on a terminal alone. Everything that shows one calls `watched`."""

import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

__all__ = ["watched"]

T = TypeVar("T")
DELAY = 1.0  # seconds before a bar appears, so that fast work shows none
RANKS = ("RANK", "LOCAL_RANK")  # how launchers of several processes number them

_running = 0  # loops that are watched now: one in another shows no bar of its own


@contextmanager
def watched(items: Collection[T], what: str) -> Iterator[Iterable[T]]:
    """Give items to a `with` block, whose iteration shows a bar on standard error once it has taken a second.

    Off a terminal, where CI is set, and on all processes but the first, they are the items themselves, so that nothing
    is imported and a step costs nothing. However the block ends, the bar is gone after it.

    Args:
        items: what is worked on, one after another.
        what: what is done, such as "merge".
    """
    global _running  # noqa: PLW0603  (one terminal, one bar)
    if len(items) <= 1 or _running or not _is_shown():
        yield items
        return
    bars = ExitStack()
    _running += 1
    try:
        with bars:
            yield _shown(items, what, bars)
    finally:
        _running -= 1


def _is_shown() -> bool:
    try:
        is_terminal = sys.stderr.isatty()
    except (AttributeError, ValueError):  # none, a stream that only writes, or a closed one
        is_terminal = False
    is_first = all(os.environ.get(name, "0") == "0" for name in RANKS)
    return is_terminal and is_first and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


def _shown(items: Collection[T], what: str, bars: ExitStack) -> Iterator[T]:
    """Yield the items, and begin the bar between two of them when the delay is over."""
    began, bar = time.monotonic(), None
    for number, item in enumerate(items):
        if bar is None and time.monotonic() - began >= DELAY:
            from rich.console import Console  # noqa: PLC0415  (a tenth of a second; most work is faster)
            from rich.progress import Progress  # noqa: PLC0415

            bar = bars.enter_context(Progress(console=Console(stderr=True), transient=True))
            bar.add_task(what, total=len(items))
        if bar is not None:
            bar.update(bar.task_ids[0], completed=number)
        yield item
