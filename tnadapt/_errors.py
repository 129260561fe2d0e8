"""The errors that tnadapt raises on purpose: one class for each step, from writing a spec to loading a file.

A message has one form: "<where>: expected A, got B." and, on the next line, what to do.
"""

from collections.abc import Sequence

__all__ = ["ExtraError", "FormatError", "LawError", "PlanError", "SiteError", "SpecError", "TnadaptError"]


class TnadaptError(Exception):
    """The base class of all errors that this library raises on purpose."""


class SpecError(TnadaptError):
    """An invalid spec. It is raised when the spec is constructed, and its message lists every fault."""

    def __init__(self, name: str, faults: Sequence[str], what: str = "spec") -> None:
        """Store the faults of one spec, or of one part of a spec.

        Args:
            name: the name of the spec, or the name of the function if a part is invalid before any spec exists.
            faults: one sentence per fault.
            what: the kind of object that has this name; empty for a function.
        """
        super().__init__(name, tuple(faults), what)
        self.name = name
        self.faults = tuple(faults)
        self.what = what

    def __str__(self) -> str:
        """Return all faults, one per line."""
        if not self.what:
            return "\n".join(f"{self.name}: {fault}" for fault in self.faults)
        return "\n".join([f"{self.what} {self.name!r} is not valid:", *(f"  - {fault}" for fault in self.faults)])


class SiteError(TnadaptError):
    """A spec, an adapter or an update that does not fit the weights it is meant for."""


class PlanError(TnadaptError):
    """A request about a network that cannot be met: no contraction order, no such rows, or too much work."""


class FormatError(TnadaptError):
    """A file or text (a spec, an adapter, a host's config) that is damaged, or that this release cannot read."""


class LawError(TnadaptError):
    """A law of `tnadapt.testing` that does not hold. The message says which law, and what was found."""


class ExtraError(TnadaptError, ModuleNotFoundError):
    """An optional package that is not installed. The message gives the command that installs it."""
