"""Factors: the tensors of a network as a user writes them, by the names of their modes and without sizes."""

from dataclasses import dataclass
from typing import Literal

from tnadapt._errors import SpecError
from tnadapt._language.initializer import Initializer, call_of_initializer, expect_modes, normal
from tnadapt._signature import answers, expect_flag, mistake, told

__all__ = ["Factor", "Same", "frozen", "same", "trainable"]

Start = Literal["zero", "centered", "free"]  # how an update starts
Map = Literal["", "rotation", "householder", "cayley"]
MAPS = {
    "rotation": 2,
    "householder": 1,
    "cayley": 0,
}  # the number of trailing modes that the map makes and params do not have


PAIR = 2  # modes


@dataclass(frozen=True)
class Factor:
    """One tensor of a network: its modes in order, its initializer, and whether it is trainable.

    With a `map`, params contain not the entries of the tensor but the numbers it is made from: an angle for a rotation,
    a vector for a Householder reflection, a matrix for a Cayley transform. The initializer is that of these numbers.
    A trainable factor that is `shared` is one array for the whole adapter, as frozen factors are.
    """

    modes: tuple[str, ...]
    init: Initializer
    trainable: bool
    map: Map = ""
    shared: bool = False

    @property
    def held(self) -> tuple[str, ...]:
        """The modes of the array in params: those of the factor without the modes that the map makes."""
        return self.modes[: len(self.modes) - MAPS.get(self.map, 0)]

    @property
    def is_zero(self) -> bool:
        """Whether every entry of the factor is 0 at the start. A factor with a map never is."""
        return self.init.is_zero and not self.map

    @property
    def is_identity(self) -> bool:
        """Whether the factor starts as an identity between its last two modes, alike along all others."""
        if self.map:
            return self.map != "householder" and self.init.is_zero
        return self.init.kind == "identity" and self.init.amount == 1 and len(self.modes) == PAIR

    def __str__(self) -> str:
        """Return a text such as: trainable "out p" normal(std=1)."""
        made = f"{self.map} of " if self.map else ""
        return f'{"trainable" if self.trainable else "frozen"} "{" ".join(self.modes)}" {made}{self.init}'


@dataclass(frozen=True)
class Same:
    """A factor again: under other modes, or with its starting values."""

    factor: str
    modes: tuple[str, ...] | None = None
    at_start: bool = False

    def __str__(self) -> str:
        """Return a text such as: same as C "q s"."""
        modes = "" if self.modes is None else f' "{" ".join(self.modes)}"'
        return f"same as {self.factor}{' at the start' if self.at_start else ''}{modes}"


@answers(SpecError)
def same(factor: str, modes: str | None = None, *, at_start: bool = False) -> Same:
    """Use a factor once more in a spec. It is stored, counted and trained once.

    Args:
        factor: the name of the factor.
        modes: its modes at this place, one for each of its own, in order; by default the same. Site modes stay.
        at_start: whether its starting values are meant, which are not trained.

    Raises:
        SpecError: `factor` is not a name, or `modes` is not a string.
    """
    if not isinstance(factor, str):
        raise mistake(SpecError, "same", "the name of a factor", told(factor), 'Write same("C", "q s").')
    expect_flag(at_start, "same", "at_start", SpecError)
    return Same(factor, None if modes is None else expect_modes(modes, "same"), at_start)


@answers(SpecError)
def trainable(modes: str, *, init: Initializer | None = None, map: Map = "", shared: bool = False) -> Factor:
    """Make a trainable factor.

    Args:
        modes: its modes in order, as in "site p q"; "" makes a scalar.
        init: its initializer; `normal()` by default.
        map: makes the last two modes: "rotation" (2 x 2 from an angle; neither mode is stored), "householder" (n x n
            from a vector along the first of them) or "cayley" (n x n orthogonal, from n x n numbers).
        shared: one array for the whole adapter, also where weights have different shapes. It is drawn at the largest
            sizes, and each group reads its leading part.

    Raises:
        SpecError: `modes` is not a string, or `init` is not an initializer.
    """
    if not isinstance(map, str):
        raise mistake(SpecError, "trainable", f"a map, one of {', '.join(MAPS)}", told(map), 'Write map="cayley".')
    expect_flag(shared, "trainable", "shared", SpecError)
    start = _initializer(init, "trainable")
    return Factor(expect_modes(modes, "trainable"), start, trainable=True, map=map, shared=shared)


@answers(SpecError)
def frozen(modes: str, *, init: Initializer | None = None) -> Factor:
    """Make a frozen factor, which keeps its starting values.

    A frozen factor without site modes is one array for the whole adapter, unless it is read from the host or is a
    pattern such as cyclic(). It is drawn at the largest sizes, and each group reads its leading part.

    Args:
        modes: its modes in order, as in "site p q"; "" makes a scalar.
        init: its initializer; `normal()` by default.

    Raises:
        SpecError: `modes` is not a string, or `init` is not an initializer.
    """
    return Factor(expect_modes(modes, "frozen"), _initializer(init, "frozen"), trainable=False)


def _initializer(given: object, where: str) -> Initializer:
    """Return the initializer, or `normal()` for None. Raises SpecError for anything else."""
    if given is None:
        return normal()
    if isinstance(given, Initializer):
        return given
    raise mistake(SpecError, where, "an initializer", told(given), call_of_initializer(given))
