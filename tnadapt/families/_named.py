"""Turn a spec, a family or the name of a family into a spec, for every function that takes a spec."""

import importlib
import inspect
from collections.abc import Callable

from tnadapt._errors import SpecError
from tnadapt._language import Adapter, AdapterSpec
from tnadapt._signature import mistake, near, told

__all__: list[str] = []

SpecLike = AdapterSpec | str | Callable[[], AdapterSpec]
"""A spec, a family, or the name of a family."""
WRAPPERS = {"magnitude": "magnitude", "dora": "magnitude", "masked": "masked", "gated": "gated"}  # what is no family
WANTED = "an AdapterSpec, or a family or its name"


def spec_of(given: object, where: str) -> AdapterSpec:
    """Return the spec; a family, or a family given by name, is called with its defaults.

    Raises SpecError for anything else, and for a family with required arguments; `where` begins the message.
    """
    if isinstance(given, AdapterSpec):
        return given
    families = importlib.import_module("tnadapt.families")  # which imports this file
    if isinstance(given, str):
        if given not in families.__all__:
            todo = near(given.lower(), families.__all__)
            if wrapper := WRAPPERS.get(given.partition("(")[0].lower()):
                todo = f"Wrap a family: {wrapper}(families.lora())."
            raise mistake(SpecError, where, WANTED, told(given), todo)
        return _called(getattr(families, given), where)
    if inspect.isfunction(given):
        return _called(given, where)
    raise mistake(SpecError, where, WANTED, told(given), _remedy(given))


def _called(family: Callable[[], AdapterSpec], where: str) -> AdapterSpec:
    """Call a family with its defaults."""
    name = getattr(family, "__name__", "family")
    arguments = inspect.signature(family).parameters.values()
    if asked := [one.name for one in arguments if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]:
        todo = f"Call it: {name}({', '.join(f'{word}=...' for word in asked)})."
        raise mistake(SpecError, where, WANTED, f"{told(family)}, which requires {asked[0]!r}", todo)
    made: object = family()
    if not isinstance(made, AdapterSpec):
        todo = "Pass a function that returns an AdapterSpec, as those of tnadapt.families do."
        raise mistake(SpecError, where, WANTED, f"{told(family)}, which returns {told(made)}", todo)
    return made


def _remedy(given: object) -> str:
    """Say what to write instead of a value that is not a spec."""
    if isinstance(given, Adapter):
        return "Pass its spec, which is bound again: adapter.spec."
    if isinstance(getattr(given, "spec", None), AdapterSpec):
        return "Pass its spec: .spec."
    return 'Write "lotr", or a call that makes a spec: families.lotr(alpha=2).'
