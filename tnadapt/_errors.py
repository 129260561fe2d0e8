"""What can go wrong: one class a door of the data's way, each message says where, the rule, what came, what to do."""

from collections.abc import Sequence

__all__ = ["FormatError", "LawError", "PlanError", "SiteError", "SpecError", "TnadaptError"]


class TnadaptError(Exception):
    """Any error that this library raises on purpose."""


class SpecError(TnadaptError):
    """A spec that cannot be: raised when it is made, with every fault listed."""

    def __init__(self, name: str, faults: Sequence[str], what: str = "spec") -> None:
        """Args: the name of the spec, and its faults, one sentence each.

        Where a part is refused before there is a spec, `what` is empty, and `name` is that of the function.
        """
        super().__init__(name, tuple(faults), what)
        self.name = name
        self.faults = tuple(faults)
        self.what = what

    def __str__(self) -> str:
        """All faults, one a line."""
        if not self.what:
            return "\n".join(f"{self.name}: {fault}" for fault in self.faults)
        return "\n".join([f"{self.what} {self.name!r} is not valid:", *(f"  - {fault}" for fault in self.faults)])


class SiteError(TnadaptError):
    """A spec, an adapter or an update that does not fit the weights it was sent to."""


class PlanError(TnadaptError):
    """A question about a network that has no answer here: no contraction order, no such rows, or too much work."""


class FormatError(TnadaptError):
    """A file or a text that is not what this release reads (a spec, an adapter, a host's config), or was damaged."""


class LawError(TnadaptError):
    """A law of `tnadapt.testing` that does not hold: which one, and what was found."""
