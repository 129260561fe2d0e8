"""Rules for the sizes of modes: what a size follows from, and what limits it."""

from dataclasses import dataclass
from typing import Literal

from tnadapt._errors import SpecError
from tnadapt._signature import answers, mistake, told

__all__ = ["SizeRule", "at_most", "like", "required"]

Kind = Literal["like", "at_most", "required"]


@dataclass(frozen=True)
class SizeRule:
    """A rule for the size of one mode; `mode` is the mode that it refers to, if any."""

    kind: Kind
    mode: str = ""

    def __str__(self) -> str:
        """Return a text such as: at most in."""
        return " ".join(filter(None, (self.kind.replace("_", " "), self.mode)))


@answers(SpecError)
def like(mode: str) -> SizeRule:
    """Give a bond the size of a mode of the weight or of the sites."""
    return SizeRule("like", _mode(mode, "like"))


@answers(SpecError)
def at_most(mode: str) -> SizeRule:
    """Limit a rank to the size of a mode of the weight."""
    return SizeRule("at_most", _mode(mode, "at_most"))


@answers(SpecError)
def required() -> SizeRule:
    """Require a size at `bind`, since an even split of the axis would be wrong, as for a number of heads."""
    return SizeRule("required")


def _mode(given: object, where: str) -> str:
    if isinstance(given, str):
        return given
    raise mistake(SpecError, where, "the name of a mode", told(given), f'Write {where}("in").')
