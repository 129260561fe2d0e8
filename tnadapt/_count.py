"""How many numbers an adapter holds: exact integers from the sizes alone, no array is made."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tnadapt._errors import SiteError
from tnadapt._network import Site
from tnadapt._spec import Adapter, AdapterSpec

__all__ = ["FactorCount", "ParamCount", "count", "fit_rank"]


@dataclass(frozen=True)
class FactorCount:
    """Entries of one array of params. `group` is empty for what all groups share or where there is one group."""

    name: str
    group: str
    modes: tuple[str, ...]
    shape: tuple[int, ...]
    trainable: bool

    @property
    def entries(self) -> int:
        """Product of the shape; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ParamCount:
    """Trainable and frozen entries of an adapter, with one row an array and the closed formula of one network."""

    trainable: int
    frozen: int
    formula: str
    rows: tuple[FactorCount, ...]

    def by_group(self) -> dict[str, int]:
        """Trainable entries of each group."""
        totals: dict[str, int] = {}
        for row in self.rows:
            if row.trainable:
                totals[row.group] = totals.get(row.group, 0) + row.entries
        return totals

    def __str__(self) -> str:
        """Totals, formula, and one line an array (the first 20)."""
        lines = [f"trainable {self.trainable:,}  frozen {self.frozen:,}  (a network trains {self.formula})"]
        for row in self.rows[:20]:
            kind = "trainable" if row.trainable else "frozen"
            lines.append(f"  {row.name}  {kind}  {' x '.join(map(str, row.shape)) or 'scalar'}  {row.entries:,}")
        hidden = len(self.rows) - 20
        return "\n".join([*lines, f"  and {hidden} more"] if hidden > 0 else lines)


def count(adapter: Adapter) -> ParamCount:
    """The exact number of trainable and frozen entries. What is shared counts once."""
    rows = tuple(
        FactorCount(slot.name, slot.group, slot.factor.modes, slot.shape, slot.factor.trainable)
        for slot in adapter.slots.values()
    )
    trainable = sum(row.entries for row in rows if row.trainable)
    frozen = sum(row.entries for row in rows if not row.trainable)
    return ParamCount(trainable, frozen, adapter.spec.formula(), rows)


def fit_rank(
    spec: AdapterSpec, sites: Iterable[Site], *, trainable: int, sizes: Mapping[str, int] | None = None
) -> int:
    """The largest rank, the same for every bond, with which these sites train at most `trainable` numbers.

    At most the longest axis among the sites; of ranks that train equally many numbers, since `caps` cut them, the
    smallest. Raises SiteError where rank 1 trains more already, or the spec has no bond.
    """
    places = tuple(sites)

    def cost(rank: int) -> int:
        return count(spec.bind(places, rank=rank, sizes=sizes)).trainable

    if (least := cost(1)) > trainable:
        raise SiteError(
            f"{spec.name}: rank 1 trains {least:,} numbers at these {len(places)} sites.\n"
            f"However, the budget is {trainable:,}.\nRaise it, or adapt fewer sites."
        )
    if not set(spec.bonds) - set(sizes or {}):
        raise SiteError(f"{spec.name}: has no bond whose size is free, so that its rank cannot be fitted.")
    low, high = 1, max(max(site.shape) for site in places)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= trainable else (low, middle - 1)
    best, reached = low, cost(low)
    low = 1
    while low < best:
        middle = (low + best) // 2
        low, best = (low, middle) if cost(middle) == reached else (middle + 1, best)
    return best
