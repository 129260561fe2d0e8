"""Where things lie in params: the entries of an adapter, and the part of each entry that one site reads."""

from collections.abc import Mapping
from dataclasses import dataclass

from tnadapt._hosts import Site
from tnadapt._language.factor import Factor
from tnadapt._language.network import Group

__all__ = ["START", "Address", "Part", "Slot"]

START = ":start"  # ends the name of a starting value that is kept; a factor's name ends in an identifier


@dataclass(frozen=True)
class Slot:
    """One entry of params: its name, its factor, its shape, the sizes it was made for, its modes but the site modes."""

    name: str
    factor: Factor
    shape: tuple[int, ...]
    sizes: Mapping[str, int]
    inner: tuple[str, ...]
    group: str = ""

    @property
    def is_stored(self) -> bool:
        """Whether a file holds its values; those of other slots are drawn again from the seed."""
        return self.factor.trainable or not self.factor.init.is_redrawn


@dataclass(frozen=True)
class Part:
    """The part of one factor that a site reads: `params[name][cut]`, before the factor's map.

    `cut` has, for each mode that params hold, the index of the site along a site mode, and the leading part along any
    other: a factor that all groups share is drawn at their largest sizes.
    """

    name: str
    factor: Factor
    cut: tuple[int | slice, ...]

    @property
    def stack(self) -> tuple[slice, ...]:
        """The same part for all sites of the group: whole along the site modes."""
        return tuple(at if isinstance(at, slice) else slice(None) for at in self.cut)

    @property
    def index(self) -> dict[str, int]:
        """The index of the site along each site mode that the factor carries."""
        return {mode: at for mode, at in zip(self.factor.held, self.cut, strict=True) if isinstance(at, int)}

    @property
    def start(self) -> str:
        """The name of the entry that holds the starting values, where one is kept: a frozen factor is its own."""
        return self.name + START if self.factor.trainable else self.name


@dataclass(frozen=True)
class Address:
    """Where a site stands: its group, its index along every site mode, and its part of every factor.

    `parts` are in the order of the network's factors, by their names.
    """

    site: Site
    group: Group
    index: Mapping[str, int]
    parts: Mapping[str, Part]
