"""Check arguments that should be an adapter, params or a path. The error message says what to pass instead."""

import inspect
import os
from collections.abc import Mapping
from typing import Any

from tnadapt._errors import SiteError, TnadaptError
from tnadapt._language.adapter import Adapter
from tnadapt._language.spec import AdapterSpec
from tnadapt._signature import mistake, told

__all__: list[str] = []


def expect_adapter(given: object, where: str, error: type[TnadaptError] = SiteError) -> Adapter:
    """Return the adapter. Raises `error` for anything else; `where` begins the message."""
    if isinstance(given, Adapter):
        return given
    raise mistake(error, where, "an Adapter", told(given), _remedy(given))


def expect_params(given: object, where: str, error: type[TnadaptError] = SiteError) -> Mapping[str, Any]:
    """Return the arrays by name. Raises `error` for anything else; `where` begins the message."""
    if isinstance(given, Mapping):
        return given
    todo = "Pass what init(adapter) returns, after the adapter: (adapter, params, ...)."
    raise mistake(error, where, "params, arrays by name", told(given), todo)


def expect_path(given: object, where: str, error: type[TnadaptError]) -> str | os.PathLike[str]:
    """Return the path of a file. Raises `error` for anything else; `where` begins the message."""
    if isinstance(given, str | os.PathLike):
        return given
    raise mistake(error, where, "the path of a file", told(given), 'Write it as a string: "adapter.safetensors".')


def _remedy(given: object) -> str:
    if isinstance(given, AdapterSpec):
        return "Bind it first: spec.bind(sites, rank=8)."
    if isinstance(given, str) or inspect.isfunction(given):
        return "Make a spec and bind it first: spec.bind(sites, rank=8)."
    if isinstance(getattr(given, "adapter", None), Adapter):
        return "Pass the adapter that it contains: .adapter."
    return "Pass what spec.bind(sites, rank=8) returns."
