"""The three standard streams: one that is closed is replaced, and an error while writing to one is a single line."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TextIO

from tnadapt._errors import FormatError

__all__: list[str] = []

MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}  # in the order of their numbers, 0 to 2


@contextmanager
def opened() -> Iterator[None]:
    """Replace each closed standard stream by the null device, for one `with` block.

    A shell closes one with `>&-`. A file that is opened takes the lowest free number, so that the null device takes
    the number of the stream. Otherwise a file of ours would, and errors of other libraries would be written into it.
    """
    with ExitStack() as stack:
        for name, mode in MODES.items():
            stream = getattr(sys, name)
            if stream is None or getattr(stream, "closed", False):
                nowhere = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")  # noqa: PTH123, SIM115
                stack.callback(setattr, sys, name, stream)
                stack.callback(nowhere.close)
                setattr(sys, name, nowhere)
        yield


@contextmanager
def written() -> Iterator[None]:
    """Run code that writes to standard output. Raises FormatError if it cannot be written, as to a full disk.

    A reader that has left is a BrokenPipeError as before.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        drop(sys.stdout)
        reason = error.strerror or str(error)
        raise FormatError(
            f"standard output: expected a file or a device that can be written, got error {reason!r}.\n"
            "The output is not complete. Send it elsewhere."
        ) from None


def flush() -> None:
    """Write what is left to write. Raises FormatError or BrokenPipeError for standard output alone."""
    try:
        sys.stderr.flush()
    except OSError:  # of an error that nobody reads, the status is left
        drop(sys.stderr)
    with written():
        sys.stdout.flush()


def drop(stream: TextIO) -> None:
    """Drop what is left to write to a stream, so that the interpreter does not try again at its end."""
    with suppress(OSError):  # a stream of Python alone has no number
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
