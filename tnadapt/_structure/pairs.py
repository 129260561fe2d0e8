"""Pairs of trained factors that alone carry a bond, as LoRA's A and B do: what an optimizer can treat as a product."""

from collections.abc import Mapping
from dataclasses import dataclass

from tnadapt._language import Adapter, Network
from tnadapt._structure.environment import Unfolding, is_in_a_term, outer_modes, place_of, raise_faults, unfolding

__all__ = ["Pair", "Side", "pairs"]


@dataclass(frozen=True)
class Side:
    """One array of params, and how it is read as (batch, rows, bond)."""

    name: str
    unfolding: Unfolding


@dataclass(frozen=True)
class Pair:
    """Two arrays of params with one bond, which no other factor has; none of the two has another bond.

    The update depends on them by left @ right^T alone, for each index along the modes that both have (the batch):
    to change them to (left g, right g^-T) changes nothing.
    """

    bond: str
    left: Side
    right: Side


def pairs(adapter: Adapter) -> tuple[Pair, ...]:
    """Return the pairs of an adapter, group by group. A trained array that is in no term is left out.

    Raises PlanError, with a reason for each factor, if a trained factor is in no pair.
    """
    found: list[Pair] = []
    faults: dict[str, str] = {}
    for group in adapter.groups:
        network = group.network
        partners: dict[str, str] = {}
        for name, factor in network.factors.items():
            if not factor.trainable or not is_in_a_term(network, name):
                continue
            partner = "several groups share it" if name in adapter.joined else _partner(network, name)
            if isinstance(partner, str):
                faults[name] = partner
            else:
                partners[name] = partner.factor
        for name, other in partners.items():
            if other not in partners:
                faults.setdefault(name, f"its partner {other!r} is in no pair")
            elif name < other:
                found.append(_pair(network, {one: adapter.slot_name(group, one) for one in (name, other)}))
    remedy = "Use Preconditioned, which takes factors with any bonds, or another optimizer."
    raise_faults("pairs", "trained factors in pairs with one bond each", faults, remedy)
    return tuple(found)


@dataclass(frozen=True)
class _Partner:
    factor: str


def _partner(network: Network, factor: str) -> _Partner | str:
    """Return the other factor of a pair, or the reason why a factor has none."""
    place = place_of(network, factor)
    if isinstance(place, str):
        return place
    term, own = place
    outer = outer_modes(network)
    bonds = [mode for mode in network.nodes[own].modes if mode not in outer]
    if len(bonds) != 1:
        return f"it has the bonds {' and '.join(bonds)}" if bonds else "it has no bond"
    carriers = [name for name in term.nodes if name != own and bonds[0] in network.nodes[name].modes]
    if len(carriers) != 1:
        return f"its bond {bonds[0]!r} joins {len(carriers) + 1} factors"
    (other,) = carriers
    if not network.is_trained(other):
        return f"the other end of its bond {bonds[0]!r}, {other!r}, is frozen"
    return _Partner(network.nodes[other].factor)


def _pair(network: Network, slots: Mapping[str, str]) -> Pair:
    modes = {name: network.factors[name].modes for name in slots}
    outer = outer_modes(network)
    left, right = modes.values()
    batch = tuple(mode for mode in left if mode in right and mode in outer)
    (bond,) = (mode for mode in left if mode not in outer)
    first, second = (
        Side(slots[name], unfolding(own, batch, tuple(m for m in own if m in outer and m not in batch), network.sizes))
        for name, own in modes.items()
    )
    return Pair(bond, first, second)
