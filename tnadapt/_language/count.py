"""Count the parameters of an adapter exactly, from the sizes alone and without making an array."""

import math
from dataclasses import dataclass

from tnadapt._errors import SiteError
from tnadapt._language.adapter import Adapter
from tnadapt._language.expected import expect_adapter
from tnadapt._signature import answers

__all__ = ["FactorCount", "ParamCount", "count"]


@dataclass(frozen=True)
class FactorCount:
    """The number of entries of one array of params.

    `group` is empty if all groups share the array, or if there is only one group. `stored` says whether a file contains
    the array; an array that is not stored is drawn again from the seed.
    """

    name: str
    group: str
    modes: tuple[str, ...]
    shape: tuple[int, ...]
    trainable: bool
    stored: bool

    @property
    def entries(self) -> int:
        """The product of the shape; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ParamCount:
    """The trainable and frozen entries of an adapter: totals, one row per array, and the formula for one network."""

    trainable: int
    frozen: int
    formula: str
    rows: tuple[FactorCount, ...]

    def by_group(self) -> dict[str, int]:
        """Return the number of trainable entries of each group."""
        totals: dict[str, int] = {}
        for row in self.rows:
            if row.trainable:
                totals[row.group] = totals.get(row.group, 0) + row.entries
        return totals

    def __str__(self) -> str:
        """Return the totals, the formula, and one line per array (the first 20)."""
        lines = [f"trainable {self.trainable:,}  frozen {self.frozen:,}  (trainable per network: {self.formula})"]
        for row in self.rows[:20]:
            kind = "trainable" if row.trainable else "frozen"
            lines.append(f"  {row.name}  {kind}  {' x '.join(map(str, row.shape)) or 'scalar'}  {row.entries:,}")
        hidden = len(self.rows) - 20
        return "\n".join([*lines, f"  and {hidden} more"] if hidden > 0 else lines)


@answers(SiteError)
def count(adapter: Adapter) -> ParamCount:
    """Count the trainable and frozen entries of an adapter exactly. A shared array counts once."""
    adapter = expect_adapter(adapter, "count")
    rows = tuple(
        FactorCount(slot.name, slot.group, slot.factor.held, slot.shape, slot.factor.trainable, slot.is_stored)
        for slot in adapter.slots.values()
    )
    trainable = sum(row.entries for row in rows if row.trainable)
    frozen = sum(row.entries for row in rows if not row.trainable)
    return ParamCount(trainable, frozen, adapter.spec.formula(), rows)
