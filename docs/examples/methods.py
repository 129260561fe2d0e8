"""The methods of a demo: the adapters in its table, any family by name, and specs from files, with sizes."""

from __future__ import annotations

import argparse
import re
import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sentences import DataError

from tnadapt import AdapterSpec, TnadaptError, families

RANK = 16  # of a family or a file that is named without one


@dataclass(frozen=True)
class Method:
    """A spec, the rank of its bonds, and sizes of modes and single bonds by name."""

    spec: AdapterSpec
    rank: int = RANK
    sizes: Mapping[str, int] = field(default_factory=dict)

    def ranks(self) -> int | dict[str, int]:
        """Return the rank of every bond: one number, or one for each where some are given by name."""
        bonds = self.spec.bonds
        if not any(bond in self.sizes for bond in bonds):
            return self.rank
        return {bond: self.sizes.get(bond, self.rank) for bond in bonds}

    def mode_sizes(self) -> dict[str, int] | None:
        """Return the sizes of modes that are no bonds."""
        return {name: size for name, size in self.sizes.items() if name not in self.spec.bonds} or None


METHODS = {
    "LoRA": Method(families.lora(), rank=8),
    "LoTR": Method(families.lotr(), rank=16),
    "MetaTT": Method(families.metatt(), rank=16),
}  # add a line for a method of your own: it is trained at the same learning rate


def file_name(method: str) -> str:
    """Return the name of a method as a part of the names of files."""
    return re.sub(r"[^a-z0-9.]+", "-", method.lower())


def check_different(names: Sequence[str]) -> None:
    """Raise DataError if two methods would write the same files."""
    files = [file_name(name) for name in names]
    if twice := [name for name, file in zip(names, files, strict=True) if files.count(file) > 1]:
        raise DataError(f"expected methods with different names, got {', '.join(twice)}: their files would be the same")


def method_named(text: str, table: Mapping[str, Method] = METHODS) -> tuple[str, Method]:
    """Read a NAME of the table, a family, or file.py:name, each with sizes if wanted: lorta@rank=32,head=3."""
    given, _, sizes = text.partition("@")
    name, method = named_without_sizes(given, table)
    found = dict(method.sizes)
    for part in filter(None, sizes.split(",")):
        key, sign, number = part.partition("=")
        if not sign or not number.isdigit() or not int(number):
            raise argparse.ArgumentTypeError(f"{text}: expected sizes as in @rank=8,head=3, got {part!r}")
        found[key.strip()] = int(number)
    rank = found.pop("rank", method.rank)
    return (text if sizes else name), replace(method, rank=rank, sizes=found)


def named_without_sizes(text: str, table: Mapping[str, Method]) -> tuple[str, Method]:
    """Look a method up in the table and among the families, or take the spec from `file.py:name`."""
    if text in table:
        return text, table[text]
    if text in families.__all__:
        family: Callable[[], AdapterSpec] = getattr(families, text)
        return text, Method(family())
    file, colon, name = text.rpartition(":")
    if not colon:
        known = f"{', '.join(table)}, a family such as fact_tt, and file.py:name"
        raise argparse.ArgumentTypeError(f"no method {text!r}; there are {known}")
    try:
        spec = runpy.run_path(file)[name]
        spec = spec() if callable(spec) else spec
    except (OSError, KeyError, SyntaxError, TnadaptError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error!r}") from error
    if not isinstance(spec, AdapterSpec):
        raise argparse.ArgumentTypeError(f"{text}: expected an AdapterSpec or a function that returns one")
    return f"{Path(file).stem}.{name}", Method(spec)
