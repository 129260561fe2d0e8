"""Parse the arguments of the command line: specs, positive integers, sizes by name. Each error is one line."""

import argparse
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from tnadapt import families
from tnadapt._errors import TnadaptError
from tnadapt._language import AdapterSpec, Scale, magnitude, masked, raw, unit
from tnadapt._signature import told
from tnadapt.policies import gated

__all__: list[str] = []

Rank = int | dict[str, int]


WRAPPERS: dict[str, Callable[[AdapterSpec], AdapterSpec]] = {"magnitude": magnitude, "masked": masked, "gated": gated}


def spec_named(text: str) -> AdapterSpec:
    """Return the spec of a family, given by its name, or the spec that a Python file defines, given as file.py:name.

    A wrapper around either is written as in Python: magnitude(lora).
    """
    outer, bracket, inner = text.partition("(")
    if bracket and outer in WRAPPERS and inner.endswith(")"):
        return _wrapped(WRAPPERS[outer], spec_named(inner.removesuffix(")").strip()))
    if outer in WRAPPERS or outer.lower() == "dora":
        wrapper = outer if outer in WRAPPERS else "magnitude"
        raise argparse.ArgumentTypeError(
            f"expected a family or file.py:name, got {text!r}; it is a wrapper, so write one around a family, in "
            f"quotes: '{wrapper}(lora)'"
        )
    if text in families.__all__:
        family: Callable[[], AdapterSpec] = getattr(families, text)
        return family()
    file, colon, name = text.rpartition(":")
    if not colon:
        raise argparse.ArgumentTypeError(
            f"expected a family or file.py:name, got {text!r}; the families are {', '.join(families.__all__)}"
        )
    names: dict[str, Any] = {}
    try:
        with redirect_stdout(sys.stderr):  # keep what the file prints out of our own output
            names = runpy.run_path(file)
            found = names.get(name)
            found = found() if callable(found) else found
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{file}: {error.strerror}") from None
    except (Exception, SystemExit) as error:  # a user's file may raise anything, or exit
        kind = "" if isinstance(error, TnadaptError) else f"{type(error).__name__}: "
        raise argparse.ArgumentTypeError(f"{file}: {kind}{' '.join(str(error).split())}") from None
    if name not in names:
        specs = [key for key, value in names.items() if isinstance(value, AdapterSpec)]
        raise argparse.ArgumentTypeError(
            f"{file}: expected a name that it defines, got {name!r}; its specs are {', '.join(specs) or 'none'}"
        )
    if not isinstance(found, AdapterSpec):
        raise argparse.ArgumentTypeError(
            f"{text}: expected an AdapterSpec or a function that returns one, got {told(found)}"
        )
    return found


def _wrapped(wrapper: Callable[[AdapterSpec], AdapterSpec], spec: AdapterSpec) -> AdapterSpec:
    try:
        return wrapper(spec)
    except TnadaptError as error:
        raise argparse.ArgumentTypeError(" ".join(str(error).split())) from None


def whole_number(text: str) -> int:
    """Return an integer of at least 1. Commas and underscores may separate its digits."""
    try:
        number = int(text.replace(",", "").replace("_", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {number}")
    return number


def sizes_by_name(text: str) -> dict[str, int]:
    """Return sizes by name, given as in p=8,q=4."""
    pairs = [part.partition("=") for part in text.split(",")]
    if wrong := [name for name, sign, _ in pairs if not sign or not name]:
        raise argparse.ArgumentTypeError(f"expected name=size, as in p=8,q=4, got {wrong[0] or text!r}")
    names = [name.strip() for name, _, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise argparse.ArgumentTypeError(f"expected each name once, got {twice[0]} twice in {text!r}")
    return {name: whole_number(size) for name, (_, _, size) in zip(names, pairs, strict=True)}


def rank_of(text: str) -> Rank:
    """Return one rank for all bonds, given as in 8, or one rank per bond, given as in p=8,q=4."""
    return sizes_by_name(text) if "=" in text else whole_number(text)


def scale_of(text: str) -> Scale:
    """Return the scale of a number, or of unit, or of unit with its alpha, given as in unit:1.6."""
    rule, colon, alpha = text.partition(":")
    is_unit = rule == "unit"
    try:
        number = float(alpha if colon else "1") if is_unit else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, unit or unit:1.6, got {text!r}") from None
    return unit(number) if is_unit else raw(number)
