"""The decorator of families, which checks the arguments of a call before the spec is made."""

import functools
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, get_args, get_origin, get_type_hints

from tnadapt._errors import SpecError
from tnadapt._hosts import as_integer
from tnadapt._language import AdapterSpec
from tnadapt._signature import answers, mistake, told

__all__: list[str] = []

P = ParamSpec("P")


def family(make: Callable[P, AdapterSpec]) -> Callable[P, AdapterSpec]:
    """Make a family raise SpecError for unknown arguments, and for values that do not match their annotation."""
    kinds = get_type_hints(make)
    name = getattr(make, "__name__", "family")

    @answers(SpecError)
    @functools.wraps(make)
    def checked(*args: P.args, **kwargs: P.kwargs) -> AdapterSpec:
        kwargs.update({word: as_integer(value) for word, value in kwargs.items() if kinds.get(word) is int})
        for word, value in kwargs.items():
            if wanted := _wanted(kinds.get(word), value):
                example = wanted.rpartition(" or ")[2] if "'" in wanted else {"a number": "8.0"}.get(wanted, "4")
                todo = f"Write {word}={'True' if 'True' in wanted else example}."
                raise mistake(SpecError, name, f"{wanted} as {word}", told(value), todo)
        return make(*args, **kwargs)

    return checked


def _wanted(kind: Any, value: object) -> str:
    """Return what was expected for an annotation; empty if the value matches it."""
    words = get_args(kind) if get_origin(kind) is Literal else ()
    if words and all(isinstance(word, str) for word in words):
        return "" if value in words else " or ".join(map(repr, words))
    if kind is bool:
        return "" if isinstance(value, bool) else "True or False"
    if kind is int or words:
        return "" if isinstance(value, int) and not isinstance(value, bool) else "an integer"
    is_number = hasattr(value, "__float__") and not isinstance(value, bool)
    return "a number" if kind is float and not is_number else ""
