"""Numbers on the command lines of the examples, checked while they are parsed."""

from __future__ import annotations

import argparse
from collections.abc import Callable

MOST = 100_000  # steps, questions, ranks; more is a mistake


def at_least(smallest: int) -> Callable[[str], int]:
    """Return a parser of integers that accepts only `smallest` or more."""

    def whole_number(text: str) -> int:
        if int(text) < smallest:
            raise argparse.ArgumentTypeError(f"expected {smallest} or more, got {text}")
        if int(text) > MOST:
            raise argparse.ArgumentTypeError(f"expected at most {MOST:,}, got {text}")
        return int(text)

    return whole_number


def positive(text: str) -> float:
    """Parse a positive number."""
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return float(text)
