"""The arguments of a call of `save_pretrained`, by name, whatever the signature of the method is."""

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__: list[str] = []

PLACE = "save_pretrained"  # the name of the method
FIRST = "save_directory"  # the name of the first argument in all libraries
NAMED = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}


class Given:
    """The arguments of one call, which a method may take as *args and **kwargs and pass on."""

    def __init__(self, save: Callable[..., Any], owner: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Name what is given by position; what goes into *args has the names of the method of a base class."""
        self.args, self.kwargs = list(args), dict(kwargs)
        self.parameters = inspect.signature(save).parameters
        self.names = _names(self.parameters)
        if _passes_on(self.parameters):
            self.names += _inherited(owner)[len(self.names) :]

    def get(self, name: str) -> Any:
        """Return the value of an argument, or its default value, or None."""
        default = getattr(self.parameters.get(name), "default", None)
        return self.named.get(name, None if default is inspect.Parameter.empty else default)

    @property
    def named(self) -> dict[str, Any]:
        """The arguments with a name, without default values."""
        return dict(zip(self.names, self.args, strict=False)) | self.kwargs

    def put(self, name: str, value: object) -> None:
        """Replace the value of an argument, or add it."""
        place = self.names.index(name) if name in self.names else len(self.args)
        if place < len(self.args):
            self.args[place] = value
        else:
            self.kwargs[name] = value

    @property
    def directory(self) -> Path | None:
        """The folder to write, or None if no argument is a path."""
        found = (*map(self.get, [FIRST, *self.names[:1]]), *self.args, *self.kwargs.values())
        return next((Path(each) for each in found if isinstance(each, str | os.PathLike)), None)

    @property
    def is_writing(self) -> bool:
        """Whether this process writes."""
        asked = self.get("is_main_process")
        return asked is None or bool(asked)


def _names(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    return [each.name for each in parameters.values() if each.kind in NAMED]


def _passes_on(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters.values())


def _inherited(owner: type) -> list[str]:
    """Return the names of what the method of a class or of its bases takes by position, without the module itself."""
    for one in owner.__mro__:
        found = inspect.signature(vars(one)[PLACE]).parameters if PLACE in vars(one) else {}
        if found and not _passes_on(found):
            return _names(found)[1:]
    return []
