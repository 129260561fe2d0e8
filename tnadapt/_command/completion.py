"""The command `tnadapt completion`: print the script with which a shell completes the words of this command."""

import argparse
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from tnadapt import families
from tnadapt._command.streams import written
from tnadapt._extras import extra
from tnadapt._hosts import CONFIGS

__all__: list[str] = []

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Suggestions:
    """What a shell offers for the arguments of a parser: families, models, and what each shell calls for files."""

    specs: Collection[str]
    models: Collection[str]
    files: Mapping[str, str | dict[str, str]]


def print_script(make: Callable[[Suggestions], argparse.ArgumentParser], shell: str) -> int:
    """Print the script for one shell. Raises ExtraError without the extra `completion`.

    Args:
        make: a function that returns the parser with these suggestions.
        shell: one of `SHELLS`.
    """
    with extra("completion", "tnadapt completion"):
        from shtab import FILE, complete  # noqa: PLC0415  (an extra)
    parser = make(Suggestions(families.__all__, CONFIGS, FILE))
    with written():
        print(complete(parser, shell=shell))
    return 0
