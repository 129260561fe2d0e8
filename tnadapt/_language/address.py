"""The layout of params: the entries of an adapter, and the part of each entry that one site reads."""

from collections.abc import Mapping
from dataclasses import dataclass

from tnadapt._hosts import Site
from tnadapt._language.factor import Factor
from tnadapt._language.network import Group
from tnadapt._language.terms import START

__all__ = ["Address", "Magnitude", "Part", "Slot"]


@dataclass(frozen=True)
class Slot:
    """One entry of params: one array.

    `sizes` are the mode sizes that the array is made for, `inner` its modes without the site modes, and `group` the
    group it belongs to: empty if all groups share it, or if there is only one.
    """

    name: str
    factor: Factor
    shape: tuple[int, ...]
    sizes: Mapping[str, int]
    inner: tuple[str, ...]
    group: str = ""

    @property
    def is_stored(self) -> bool:
        """Whether a file contains its values; those of the other slots are drawn again from the seed."""
        return self.factor.trainable or not self.factor.init.is_redrawn

    @property
    def is_fixed(self) -> bool:
        """Whether its values are part of the structure: a plan may convolve instead of reading a cyclic pattern."""
        return self.factor.init.kind == "cyclic" and not self.factor.trainable


@dataclass(frozen=True)
class Part:
    """The part of one factor that a site reads: `params[name][cut]`, before the factor's map.

    For each mode of the array, `cut` has the index of the site along a site mode, and a slice of the leading entries
    along any other mode, since a factor that all groups share is drawn at their largest sizes. `at_start` says that
    starting values are meant; they are an entry of params only if they were read from the host.
    """

    name: str
    factor: Factor
    cut: tuple[int | slice, ...]
    at_start: bool = False

    @property
    def source(self) -> str:
        """The name of the factor's own entry."""
        return self.name.removesuffix(START) if self.at_start else self.name

    @property
    def stack(self) -> tuple[slice, ...]:
        """The same part for all sites of the group: a full slice along each site mode."""
        return tuple(at if isinstance(at, slice) else slice(None) for at in self.cut)

    @property
    def index(self) -> dict[str, int]:
        """The index of the site along each site mode that the factor carries."""
        return {mode: at for mode, at in zip(self.factor.held, self.cut, strict=True) if isinstance(at, int)}


@dataclass(frozen=True)
class Magnitude:
    """The parts that a magnitude reads at a site: its lengths, and the host's weight, whose rows it scales as well."""

    lengths: Part
    weight: Part


@dataclass(frozen=True)
class Address:
    """The position of a site: its group, its index along every site mode, and its part of every factor.

    `parts` maps the name of each node of the network to the part that it reads, in the order of the nodes; the
    `magnitude`, if there is one, is no node.
    """

    site: Site
    group: Group
    index: Mapping[str, int]
    parts: Mapping[str, Part]
    magnitude: Magnitude | None = None
