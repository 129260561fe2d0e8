"""What the words of the command mean: specs, whole numbers, sizes by name. A word that means nothing is one line."""

import argparse
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from tnadapt import families
from tnadapt._errors import TnadaptError
from tnadapt._language import AdapterSpec

__all__: list[str] = []

Rank = int | dict[str, int]


def spec_named(text: str) -> AdapterSpec:
    """A family by its name, or what a file of python calls by a name: file.py:name."""
    if text in families.__all__:
        family: Callable[[], AdapterSpec] = getattr(families, text)
        return family()
    file, colon, name = text.rpartition(":")
    if not colon:
        raise argparse.ArgumentTypeError(
            f"no family {text!r}; there are {', '.join(families.__all__)}, or file.py:name for a spec of your own"
        )
    room: dict[str, Any] = {}
    try:
        with redirect_stdout(sys.stderr):  # what the file prints is not our answer
            room = runpy.run_path(file)
            found = room.get(name)
            found = found() if callable(found) else found
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{file}: {error.strerror}") from None
    except (Exception, SystemExit) as error:  # a file of the user's may raise anything, or end the program
        kind = "" if isinstance(error, TnadaptError) else f"{type(error).__name__}: "
        raise argparse.ArgumentTypeError(f"{file}: {kind}{' '.join(str(error).split())}") from None
    if name not in room:
        specs = [key for key, value in room.items() if isinstance(value, AdapterSpec)]
        raise argparse.ArgumentTypeError(f"{file} has no {name!r}; it has {', '.join(specs) or 'no spec'}")
    if not isinstance(found, AdapterSpec):
        raise argparse.ArgumentTypeError(f"{text}: is no AdapterSpec, nor a function that returns one")
    return found


def whole_number(text: str) -> int:
    """A whole number of at least 1; commas and underscores between its digits are fine."""
    try:
        number = int(text.replace(",", "").replace("_", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted a whole number, got {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"wanted 1 or more, got {number}")
    return number


def sizes_by_name(text: str) -> dict[str, int]:
    """Sizes by name, as in p=8,q=4."""
    pairs = [part.partition("=") for part in text.split(",")]
    if wrong := [name for name, sign, _ in pairs if not sign or not name]:
        raise argparse.ArgumentTypeError(f"wanted name=size, as in p=8,q=4; got {wrong[0] or text!r}")
    names = [name.strip() for name, _, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise argparse.ArgumentTypeError(f"{twice[0]} is named twice in {text!r}")
    return {name: whole_number(size) for name, (_, _, size) in zip(names, pairs, strict=True)}


def rank_of(text: str) -> Rank:
    """A rank for every bond, as 8, or one by one, as p=8,q=4."""
    return sizes_by_name(text) if "=" in text else whole_number(text)
