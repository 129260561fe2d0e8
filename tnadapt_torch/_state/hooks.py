"""What serves the sites of one adapter: a hook for each, and where it finds its factors."""

from typing import Protocol

from tnadapt import Adapter, Site
from tnadapt.binding import Part
from tnadapt_torch._run import BlocksHook, Hook, Leading, Mapped, Owner, Ref, Row, SiteHook, Stack
from tnadapt_torch._state.factors import Factors, leaf_of

__all__: list[str] = []


class Trees(Owner, Protocol):
    """An adapter's state, as far as its hooks are made from it."""

    adapter: Adapter
    factors: Factors
    start: Factors
    stacks: dict[tuple[bool, str], Stack]


def make_hooks(state: Trees) -> dict[str, Hook]:
    """Make the hooks by path: one for each site, and one for each weight that several sites lie in."""
    by_site = {site: _hook_of(state, site) for site in state.adapter.sites}
    hooks: dict[str, Hook] = {site.path: hook for site, hook in by_site.items()}
    for path, sites in state.adapter.weights.items():
        if path not in hooks:
            hooks[path] = BlocksHook(state, {site: by_site[site] for site in sites})
    return hooks


def _hook_of(state: Trees, site: Site) -> SiteHook:
    address = state.adapter.address(site)
    network, parts = address.group.network, address.parts.values()
    refs = [_ref(state, part) for part in parts]
    if network.centered:
        refs += [_start_ref(state, part) for part in parts]
    return SiteHook(state, network, refs)


def _ref(state: Trees, part: Part, *, name: str = "", is_start: bool = False) -> Ref:
    """Find where a site reads its part of a factor; a stacked factor is taken apart in one place for all sites."""
    key = name or part.name
    owner, leaf = leaf_of(state.start if is_start else state.factors, key)
    table = owner._parameters if leaf in owner._parameters else owner._buffers
    places = [(axis, at) for axis, at in enumerate(part.cut) if isinstance(at, int)]
    found: Ref
    if places:
        axes = tuple(axis for axis, _ in places)
        stack = state.stacks.setdefault((is_start, key), Stack(table, leaf, axes))
        found = Row(stack, tuple(at for _, at in places))
    else:
        whole = tuple(at.stop for at in part.stack) == state.adapter.slots[part.name].shape
        found = Leading(table, leaf, None if whole else part.stack)
    return Mapped(found, part.factor.map) if part.factor.map else found


def _start_ref(state: Trees, part: Part) -> Ref:
    """Find where a site reads the starting values: kept beside the factors, drawn again, or a frozen factor itself."""
    if part.start in state.adapter.slots:
        return _ref(state, part, name=part.start)
    return _ref(state, part, is_start=True)
