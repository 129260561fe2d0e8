"""How many numbers an adapter holds: exact integers from the sizes alone, no array is made."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tnadapt._errors import SiteError
from tnadapt._hosts import Site, check_size
from tnadapt._language.spec import Adapter, AdapterSpec

__all__ = ["FactorCount", "ParamCount", "count", "fit_rank"]


@dataclass(frozen=True)
class FactorCount:
    """Entries of one array of params. `group` is empty for what all groups share or where there is one group.

    `stored`: a file holds it; what is not stored is drawn again from the seed.
    """

    name: str
    group: str
    modes: tuple[str, ...]
    shape: tuple[int, ...]
    trainable: bool
    stored: bool

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
        FactorCount(slot.name, slot.group, slot.factor.held, slot.shape, slot.factor.trainable, slot.is_stored)
        for slot in adapter.slots.values()
    )
    trainable = sum(row.entries for row in rows if row.trainable)
    frozen = sum(row.entries for row in rows if not row.trainable)
    return ParamCount(trainable, frozen, adapter.spec.formula(), rows)


def fit_rank(
    spec: AdapterSpec, sites: Iterable[Site], *, trainable: int, sizes: Mapping[str, int] | None = None
) -> int:
    """The largest rank, the same for every bond, with which these sites train at most `trainable` numbers.

    At most the longest axis among the sites; of ranks that `caps` cut to the same networks, the smallest.
    Raises SiteError where rank 1 trains more already, the spec has no bond, or the budget is no integer.
    """
    places = tuple(sites)
    check_size(f"{spec.name}: the budget of trainable numbers", trainable)
    if not set(spec.bonds) - set(sizes or {}):
        raise SiteError(f"{spec.name}: has no bond whose size is free, so that its rank cannot be fitted.")

    def bound(rank: int) -> Adapter:
        return spec.bind(places, rank=rank, sizes=sizes, overparametrized=True)

    if (least := count(bound(1)).trainable) > trainable:
        raise SiteError(
            f"{spec.name}: rank 1 trains {least:,} numbers at these {len(places)} sites.\n"
            f"However, the budget is {trainable:,}.\nRaise it, or adapt fewer sites."
        )
    ranks = range(1, max(max(site.shape) for site in places) + 1)
    best = ranks[bisect_right(ranks, trainable, key=lambda rank: count(bound(rank)).trainable) - 1]
    reached = bound(best).networks
    return ranks[bisect_left(ranks, True, hi=best, key=lambda rank: bound(rank).networks == reached)]
