"""Factors: the nodes of a network, as a user writes them. None of them knows a size."""

from dataclasses import dataclass
from typing import Literal

from tnadapt._errors import SpecError
from tnadapt._language.initializer import Initializer, call_of_initializer, expect_modes, normal
from tnadapt._signature import answers, mistake, told

__all__ = ["Factor", "frozen", "trainable"]

Map = Literal["", "rotation", "householder", "cayley"]
MAPS = {"rotation": 2, "householder": 1, "cayley": 0}  # how many of a node's last modes are not stored


@dataclass(frozen=True)
class Factor:
    """A node of the network: its modes in order, its initializer, trainable or frozen.

    With a `map`, params hold not the entries of the node but what they are made from: an angle for a rotation, a vector
    for a Householder reflection, a matrix for a Cayley transform. The initializer is that of what params hold.
    """

    modes: tuple[str, ...]
    init: Initializer
    trainable: bool
    map: Map = ""

    @property
    def held(self) -> tuple[str, ...]:
        """The modes of the array in params: those of the node without the ones that the map makes."""
        return self.modes[: len(self.modes) - MAPS.get(self.map, 0)]

    @property
    def is_zero(self) -> bool:
        """Whether every entry of the node is 0 at the start: no map makes 0 of 0."""
        return self.init.is_zero and not self.map

    def __str__(self) -> str:
        """As in trainable "out p" normal(std=1)."""
        made = f"{self.map} of " if self.map else ""
        return f'{"trainable" if self.trainable else "frozen"} "{" ".join(self.modes)}" {made}{self.init}'


@answers(SpecError)
def trainable(modes: str, *, init: Initializer | None = None, map: Map = "") -> Factor:
    """Make a factor that is trained.

    Args:
        modes: its modes in order, as in "site p q"; "" makes a scalar.
        init: its initializer; `normal()` by default.
        map: makes the last two modes: "rotation" (2 x 2 from an angle; neither mode is stored), "householder" (n x n
            from a vector along the first of them) or "cayley" (n x n orthogonal, from n x n numbers).

    Raises:
        SpecError: modes that are no text, an `init` that is no initializer.
    """
    if not isinstance(map, str):
        raise mistake(SpecError, "trainable", f"a map, one of {', '.join(MAPS)}", told(map), 'Write map="cayley".')
    return Factor(expect_modes(modes, "trainable"), _initializer(init, "trainable"), trainable=True, map=map)


@answers(SpecError)
def frozen(modes: str, *, init: Initializer | None = None) -> Factor:
    """Make a factor that keeps its starting values.

    One without site modes is the same array for the whole adapter, drawn at the largest sizes; each group reads its
    leading part. Raises SpecError as `trainable` does.
    """
    return Factor(expect_modes(modes, "frozen"), _initializer(init, "frozen"), trainable=False)


def _initializer(given: object, where: str) -> Initializer:
    """The initializer, `normal()` for none. Raises SpecError for anything else."""
    if given is None:
        return normal()
    if isinstance(given, Initializer):
        return given
    raise mistake(SpecError, where, "an initializer", told(given), call_of_initializer(given))
