"""Patterns of PEFT's options: regular expressions for paths, each with a value for the modules that it matches."""

import re
from collections.abc import Mapping
from typing import Any

from tnadapt._errors import FormatError
from tnadapt._files.limits import SEARCHED, SITES, keep

__all__: list[str] = []

LITERAL = re.compile(r"(\^?)((?:[^\\.^$*+?{}\[\]|()]|\\\W)+)")  # a path as re.escape writes it, and single words
PATTERN = re.compile(r"[\w.\-\\^$|()*+\[\]]{1,500}")  # without braces or question marks
MOST_REPEATS, MOST_GROUPS = 2, 4
COMPILED, CALLED = 2**14, 2**7  # steps of a search in the time to compile an expression, and to call it


class Patterns:
    """The patterns of one option in order. The first that matches a whole path, or its last words, gives the value.

    Most are names without a special character, and are looked up. The others are searched for one by one, as long as
    that takes seconds.
    """

    def __init__(self, where: str, patterns: Mapping[str, Any]) -> None:
        """Raise FormatError for too many patterns."""
        keep(where, "patterns", len(patterns), SITES)
        self.where, self.values = where, list(patterns.items())
        self.names: dict[tuple[bool, str], int] = {}  # (a whole path, the name) -> its first place
        self.others: list[int] = []
        self.compiled: dict[int, re.Pattern[str]] = {}
        self.work = 0
        for place, (pattern, _) in enumerate(self.values):
            if found := LITERAL.fullmatch(pattern):
                key = bool(found[1]), re.sub(r"\\(.)", r"\1", found[2], flags=re.DOTALL)
                self.names.setdefault(key, place)
            else:
                self.others.append(place)

    def value(self, module: str, otherwise: object) -> Any:
        """Return the value for a module, or `otherwise` if no pattern matches.

        Raises FormatError for a pattern that is no regular expression, or with which a search could take very long.
        """
        words = module.split(".")
        ends = (".".join(words[place:]) for place in range(len(words)))
        keys = [(True, module), *((False, end) for end in ends)]
        first = min((self.names[key] for key in keys if key in self.names), default=len(self.values))
        for place in self.others:
            if place > first:
                break
            if self._matches(place, module):
                return self.values[place][1]
        return self.values[first][1] if first < len(self.values) else otherwise

    def _matches(self, place: int, module: str) -> bool:
        pattern = self.values[place][0]
        if place not in self.compiled:
            self.compiled[place] = self._compile(pattern)
            self.work += COMPILED
        repeats, choices = sum(map(pattern.count, "*+")), 1 + pattern.count("|")
        self.work += CALLED + (1 + len(module)) ** (1 + repeats) * choices ** (1 + pattern.count("("))
        keep(self.where, "steps of a search for its expressions", self.work, SEARCHED, "Name the modules instead.")
        return self.compiled[place].match(module) is not None

    def _compile(self, pattern: str) -> re.Pattern[str]:
        repeats, groups = sum(map(pattern.count, "*+")), pattern.count("(")
        is_short = PATTERN.fullmatch(pattern) and repeats <= MOST_REPEATS and groups <= MOST_GROUPS
        if not is_short or re.search(r"\)[*+]", pattern):
            raise FormatError(
                f"{self.where}: expected expressions with at most {MOST_REPEATS} repeats and {MOST_GROUPS} groups, "
                f"got {pattern[:100]!r}."
            )
        try:
            return re.compile(rf"(.*\.)?({pattern})$")
        except re.error as error:
            raise FormatError(
                f"{self.where}: expected names and regular expressions, got {pattern[:100]!r}: {error}."
            ) from None
