"""Chains: the sum of the updates of adapters that were trained one after another on the same weights."""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tnadapt._errors import PlanError, SiteError
from tnadapt._frozen import FrozenMap
from tnadapt._hosts import Site
from tnadapt._language import Adapter, expect_adapter, expect_params
from tnadapt._signature import answers, answers_when_made, mistake, told
from tnadapt._structure import LoRA, check_exportable, exact_lora, join, rank_bound, shorten
from tnadapt._values import delta, merge

__all__ = ["Chain", "Link"]

Array = npt.NDArray[np.float64]


class Link(NamedTuple):
    """One adapter of a chain, with its params as read-only arrays."""

    adapter: Adapter
    params: Mapping[str, npt.NDArray[np.floating]]


@answers_when_made(SiteError)
class Chain:
    """An immutable sum of links (adapter, params), all on the same weights; specs, ranks and seeds may differ.

    The update of a weight is the sum of the updates of all links. The arrays are copied.
    Sources: COLA (arXiv:2401.04151), ReLoRA (arXiv:2307.05695), RAC-LoRA (arXiv:2410.08305) and XGBLoRA
    (arXiv:2410.19694).

    Raises SiteError for no links, links on different weights, params that do not belong to their adapter, and a spec of
    which the host's weight is a factor: its update holds for the weights of its own time alone.
    """

    links: tuple[Link, ...]

    def __init__(self, links: Iterable[tuple[Adapter, Mapping[str, npt.ArrayLike]]]) -> None:
        """Check and copy the links."""
        if isinstance(links, Mapping | str) or not isinstance(links, Iterable):
            todo = "Write Chain([(adapter, params)])."
            raise mistake(SiteError, "Chain", "a list of (adapter, params)", told(links), todo)
        made = tuple(_link(number, one) for number, one in enumerate(links))
        if not made:
            raise SiteError("Chain: expected at least one link, got none.\nWrite Chain([(adapter, params)]).")
        self._take(made)

    def _take(self, links: tuple[Link, ...]) -> None:
        for number, link in enumerate(links):
            _check_sites(number, links[0].adapter, link.adapter)
        object.__setattr__(self, "links", links)

    def __setattr__(self, name: str, value: object) -> None:
        """Raise AttributeError: a chain does not change."""
        raise AttributeError(f"a Chain does not change: {name} cannot be set")

    @answers(SiteError)
    def extended(self, adapter: Adapter, params: Mapping[str, npt.ArrayLike]) -> "Chain":
        """Return a new chain with one more link. Raises the errors of `Chain`."""
        longer = object.__new__(Chain)
        longer._take((*self.links, _link(len(self.links), (adapter, params))))  # those before were copied and checked
        return longer

    def __len__(self) -> int:
        """Return the number of links."""
        return len(self.links)

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """The paths of the weights that the chain changes."""
        return tuple(self.links[0].adapter.weights)

    @answers(SiteError)
    def delta(self, site: Site | str) -> Array:
        """Return the update of a site or of the weight of a path: the sum over all links in float64, (out, in).

        Raises SiteError in the cases of `tnadapt.delta`.
        """
        updates = [delta(adapter, params, site) for adapter, params in self.links]
        return sum(updates[1:], updates[0])

    @answers(SiteError)
    def merged(self, weights: Mapping[str, npt.NDArray[np.floating]]) -> dict[str, npt.NDArray[np.floating]]:
        """Return new weights by path, each with the updates of all links.

        The links are summed in float64 before they are added, and each weight is rounded once. So updates are kept
        that would each be lost to the rounding of a bfloat16 weight.

        Args:
            weights: the host's weights from before the first link, by path, (out, in); it may have others too.

        Raises:
            SiteError: a weight of the chain is missing or has another shape, or a sum is not finite.
        """
        if not isinstance(weights, Mapping):
            todo = "Pass a mapping from paths to arrays (out, in)."
            raise mistake(SiteError, "merged", "the host's weights by path", told(weights), todo)
        if missing := [path for path in self.weights if path not in weights]:
            raise SiteError(
                f"merged: expected the weight {missing[0]}, got none.\nPass all weights of the chain by path."
            )
        return {path: merge(np.asarray(weights[path]), self.delta(path)) for path in self.weights}

    @answers(SiteError)
    def rank_bound(self, site: Site | str) -> int:
        """Return the largest rank that the update of a site can have for any params.

        It is the sum of the bounds of all links, but at most min(out, in). Raises SiteError for an unknown site.
        """
        shape = self.links[0].adapter.find(site)[1].shape
        total = sum(rank_bound(adapter, site).rank for adapter, _ in self.links)
        return min(total, shape[0], math.prod(shape[1:]))

    @answers(SiteError)
    def to_lora(self, site: Site | str, *, rank: int | None = None) -> LoRA:
        """Return the update of a site or a weight as one LoRA: the factors of all links side by side.

        Exact up to rounding, unless a smaller `rank` asks for the best approximation of that rank.

        Raises:
            PlanError: an update of full rank without `rank`.
            SiteError: in the cases of `tnadapt.to_lora`.
        """
        loras = [_lora(link, site, rank) for link in self.links]
        rows, columns = len(loras[0].B), loras[0].A.shape[1]
        if rank is None and (most := sum(lora.rank for lora in loras)) >= min(rows, columns):
            path = site if isinstance(site, str) else site.path
            raise PlanError(
                f"{path}: expected a chain of less than full rank, got links of ranks that add up to {most:,}, of a "
                f"weight {rows} x {columns}.\nPass rank= for the best approximation of that rank; rank={most} is exact."
            )
        joined = LoRA(np.vstack([lora.A for lora in loras]), np.hstack([lora.scale * lora.B for lora in loras]), 1.0)
        return shorten(joined, rank)

    def __repr__(self) -> str:
        """Return the specs and the seeds of the links."""
        names = ", ".join(f"{adapter.spec.name} seed {adapter.seed}" for adapter, _ in self.links)
        return f"Chain({len(self.links)} links on {len(self.weights)} weights: {names})"


def _link(number: int, given: object) -> Link:
    where = f"Chain: link {number}"
    match given:
        case [first, second]:
            adapter, params = expect_adapter(first, where), expect_params(second, where)
        case _:
            todo = "Write Chain([(adapter, params)])."
            raise mistake(SiteError, where, "a pair (adapter, params)", told(given), todo)
    if adapter.hosts:
        raise SiteError(
            f"{where}: expected a spec whose update follows from its params, got {adapter.spec.name}, whose update "
            "reads the host's weight.\nIt holds for the weights of its own time alone. Merge such an adapter by "
            "itself, and begin a chain on the merged weights."
        )
    return Link(adapter, FrozenMap(dict(_arrays(where, adapter, params))))


def _arrays(
    where: str, adapter: Adapter, params: Mapping[str, npt.ArrayLike]
) -> Iterator[tuple[str, npt.NDArray[np.floating]]]:
    """Yield a read-only copy of every array of an adapter. Raises SiteError for other names and shapes."""
    if odd := sorted(map(str, params.keys() ^ adapter.slots.keys())):
        has = "one more" if odd[0] in params else "none"
        raise SiteError(
            f"{where}: expected the params of its adapter, got {has}: {odd[0]!r}.\n"
            "Pass what init(adapter) returns, after training."
        )
    for name, slot in adapter.slots.items():
        array = np.array(params[name])
        if array.shape != slot.shape:
            raise SiteError(f"{where}: params[{name!r}]: expected shape {slot.shape}, got {array.shape}.")
        if array.dtype.kind in "OSUbiuc":
            raise SiteError(f"{where}: params[{name!r}]: expected floats, got {array.dtype}.")
        if not np.isfinite(array).all():
            raise SiteError(f"{where}: params[{name!r}]: expected finite numbers, got NaN or infinity.")
        array.flags.writeable = False
        yield name, array


def _check_sites(number: int, first: Adapter, other: Adapter) -> None:
    ours, theirs = ({site.path: (site.shape, site.block) for site in one.sites} for one in (first, other))
    if ours == theirs:
        return
    path = sorted(path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))[0]
    came = "none there" if path not in theirs else "another there" if path not in ours else f"{theirs[path][0]}"
    raise SiteError(
        f"Chain: link {number}: expected the same sites as link 0, got a difference at {path}: {came}.\n"
        "All links of a chain are bound to the same sites."
    )


def _lora(link: Link, site: Site | str, rank: int | None) -> LoRA:
    adapter, params = link
    parts = adapter.parts(site) if isinstance(site, str) else ()
    sites = parts or (adapter.find(site)[1],)
    check_exportable(adapter, sites, rank, is_weight=bool(parts))
    loras = [exact_lora(adapter, params, one) for one in sites]
    return join(loras, parts) if parts else loras[0]
