"""What grows at once: the bonds of a group, with their rank, and the factors whose norm says how much they are used."""

from collections.abc import Sequence
from dataclasses import dataclass

from tnadapt._errors import SiteError
from tnadapt._language import Adapter, expect_adapter
from tnadapt._signature import answers
from tnadapt.policies._bonds import Bond, every_bond, find_bonds, limits_of, refuse
from tnadapt.policies._grow import why_not_grown, zero_factors

__all__ = ["Unit", "units"]

WHERE = "units"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The bonds of one group, or those that all groups have in common; they grow by the same number.

    `rank` is the size of the first one, `limit` the largest rank that the rules of the spec allow, and `entries` are
    those of params whose new slices are 0 when that bond grows: what was trained in them since is what the bond is used
    for. (If another bond of the unit grows too, they may get drawn values along that one.)
    """

    bonds: tuple[str, ...]
    rank: int
    limit: int | None
    entries: tuple[str, ...]


@answers(SiteError)
def units(adapter: Adapter, bonds: Sequence[str] | None = None) -> dict[str, Unit]:
    """Return what grows at once, by the name of the group; "" has the bonds that all groups have in common.

    Args:
        adapter: the adapter.
        bonds: names of bonds, as for `grow`; by default every bond that can grow.

    Raises:
        SiteError: a bond cannot grow, or none can.
    """
    adapter = expect_adapter(adapter, WHERE)
    known, chosen = every_bond(adapter), dict[str, Bond]()
    named = [one for name in bonds or () for one in find_bonds(adapter, name, WHERE, known)]
    reasons = {one.name: why_not_grown(adapter, one, 0) for one in named or known.values()}
    for name, reason in reasons.items():
        if reason and named:
            raise refuse(WHERE, known[name], reason)
        if not reason:
            chosen[name] = known[name]
    if not chosen:
        why = "; ".join(f"{known[name].mode!r}: {reason}" for name, reason in reasons.items()) or "it has no bonds"
        raise SiteError(f"{WHERE}: expected an adapter with a bond that can grow, got {adapter.spec.name} ({why}).")
    found: dict[str, list[Bond]] = {}
    for bond in chosen.values():
        found.setdefault(bond.name.rpartition(".")[0], []).append(bond)
    return {name: _unit(adapter, own) for name, own in found.items()}


def _unit(adapter: Adapter, bonds: Sequence[Bond]) -> Unit:
    first = bonds[0]
    rank = max(first.sizes)
    room = [most - max(one.sizes) for one in bonds if (most := limits_of(adapter, one)) is not None]
    zeros = zero_factors(adapter.spec, first.modes)
    entries = dict.fromkeys(adapter.slot_name(group, name) for group in first.groups for name in zeros)
    names = tuple(one.name for one in bonds)
    return Unit(bonds=names, rank=rank, limit=rank + min(room) if room else None, entries=tuple(entries))
