"""Blocks in which products of factors are kept, and made for all sites at once where there are gradients."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch.distributed as dist
from torch import nn

from tnadapt_torch._run import Member, SiteUpdate, bundle_sites
from tnadapt_torch._sharded import is_sharded, sharding

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []


class Fixable(nn.Module):
    """The part of an adapter's state that keeps products of factors."""

    def __init__(self) -> None:
        """Begin outside of every block."""
        super().__init__()
        self.products: Any = None  # of factors alone, in blocks of `fixed()`: a dict, by what they are made for
        self.joint: Any = None  # the same with gradients, for all sites
        self.members: Mapping[str, Member] | None = None  # by path: the sites that make products together there
        self.fixings = 0  # blocks that are open; they end in any order

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Keep what is made of factors alone, in a `with` block: for one site, or with gradients for all at once.

        A factor that is replaced or changed in place is noticed. A change through `.data` or by a fused optimizer is
        noticed after a call with gradients and its backward pass, as in training, and not elsewhere.
        """
        if self.products is None:
            self.join_sites()
            self.products, self.joint = {}, {}
        self.fixings += 1
        try:
            yield
        finally:
            self.fixings -= 1
            if not self.fixings:
                self.products = self.joint = None

    def forget_products(self) -> None:
        """Let go of all products, and of the factors that they were made of."""
        if self.products is not None:
            self.products, self.joint = {}, {}

    def join_sites(self, *, again: bool = False) -> None:
        """Tell the sites which of them make products together: none where other libraries hold the factors at times.

        That is found out once, or `again`.
        """
        state = cast("AdapterState", self)
        if self.members is None or again:
            self.forget_products()
            updates = {site.path: state.updates.get(site.path) for site in state.adapter.sites}
            plain = {path: one for path, one in updates.items() if isinstance(one, SiteUpdate)}
            self.members = bundle_sites(
                state, state.adapter.groups, {path: one for path, one in plain.items() if not one.reads_product}
            )
        is_spread = _is_spread(state)
        for path, member in self.members.items():
            cast("SiteUpdate", state.updates[path]).member = None if is_spread else member

    def outside(self) -> dict[str, Any]:
        """Return the attributes of a copy, which is in no block."""
        return {"products": None, "joint": None, "members": None, "fixings": 0}


def _is_spread(state: "AdapterState") -> bool:
    """Return whether factors have values for a part of a pass only, as under FSDP: without processes, none has."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    params = state.params().values()
    marks = ("_fsdp_flattened", "ds_id")
    is_marked = any(is_sharded(one) or any(hasattr(one, mark) for mark in marks) for one in params)
    return is_marked or bool(sharding([state, *state.host]))
