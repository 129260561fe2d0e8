"""Make the updates of an adapter, one per site, with references to the factors of each."""

from collections.abc import Iterable
from typing import Protocol

from tnadapt import Adapter, Site
from tnadapt.binding import HOST_WEIGHTS, Address, Part
from tnadapt_torch._host import Hosted, Merging, Weight
from tnadapt_torch._run import (
    BlocksUpdate,
    Held,
    Leading,
    MagnitudeUpdate,
    Mapped,
    Owner,
    Ref,
    Row,
    SiteUpdate,
    Stack,
    Update,
)
from tnadapt_torch._state.factors import Factors, leaf_of

__all__: list[str] = []


class Trees(Owner, Merging, Protocol):
    """The attributes of an adapter's state from which its updates are made."""

    adapter: Adapter
    factors: Factors
    start: Factors
    stacks: dict[str, Stack]
    weights: dict[str, Weight]


def make_updates(state: Trees) -> dict[str, Update]:
    """Make the updates by path: one per site, and one per weight that holds several sites."""
    by_site = {site: _update_of(state, site) for site in state.adapter.sites}
    updates: dict[str, Update] = {site.path: update for site, update in by_site.items()}
    for path, sites in state.adapter.weights.items():
        if path not in updates:
            updates[path] = BlocksUpdate(state, {site: by_site[site] for site in sites})
    follow(by_site.values())
    return updates


def follow(updates: Iterable[Update]) -> None:
    """Move what the updates hold beside the factors to the devices of the factors, and let them run there."""
    for update in updates:
        if isinstance(update, BlocksUpdate):
            continue
        single = update.below if isinstance(update, MagnitudeUpdate) else update
        for ref in update.refs:
            bare = ref.ref if isinstance(ref, Mapped) else ref
            if isinstance(bare, Row):
                bare.follow()
            held = bare.stack.held if isinstance(bare, Row) else bare.held if isinstance(bare, Leading) else bare
            if isinstance(held, Held) and held.kept is not None:
                single.run_on(held.kept.device.type)


def _update_of(state: Trees, site: Site) -> SiteUpdate | MagnitudeUpdate:
    address = state.adapter.address(site)
    below = SiteUpdate(state, address.group.network, [_ref(state, part, address) for part in address.parts.values()])
    if address.magnitude is None:
        return below
    weight = Hosted(state, state.weights[site.weight], site, site.shape)
    return MagnitudeUpdate(below, _ref(state, address.magnitude.lengths, address), weight)


def _ref(state: Trees, part: Part, address: Address) -> Ref:
    """Make the reference to a site's part of a factor. All sites of a stacked factor share one `Stack`."""
    if part.factor.init.kind in HOST_WEIGHTS:
        shape = tuple(address.group.network.sizes[mode] for mode in part.factor.modes)
        is_mask = part.factor.init.kind == "host_mask"
        return Hosted(state, state.weights[address.site.weight], address.site, shape, is_mask=is_mask)
    is_kept = part.name in state.adapter.slots
    owner, leaf = leaf_of(state.factors if is_kept else state.start, part.name)
    held = Held(owner, leaf, leaf in owner._parameters)
    places = [(axis, at) for axis, at in enumerate(part.cut) if isinstance(at, int)]
    found: Ref
    if places:
        axes = tuple(axis for axis, _ in places)
        stack = state.stacks.setdefault(part.name, Stack(held, axes))
        found = Row(stack, tuple(at for _, at in places))
    else:
        whole = tuple(at.stop for at in part.stack) == tuple(held.stored.shape)
        found = held if whole else Leading(held, part.stack)
    return Mapped(found, part.factor.map) if part.factor.map else found
