"""What an adapter is made to come close to: updates of sites, dense or as products of two thin matrices."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tnadapt._alternating import Term
from tnadapt._einsum import Array, Modes, Operand, contract
from tnadapt._errors import SiteError
from tnadapt._init import Params, init
from tnadapt._network import Group, Network
from tnadapt._rank import minimum_cut
from tnadapt._site import Site
from tnadapt._spec import Adapter

__all__ = ["LowRank", "low_rank"]

SPARE = 8  # columns of a sketch beyond the rank
INNER = "(rank)"
Place = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LowRank:
    """An update as a product: left (out, r) times right (r, in), which may have several in axes; scale included.

    Raises SiteError for arrays that do not meet in one r.
    """

    left: Array
    right: Array

    def __post_init__(self) -> None:
        """Make float64 arrays of both, check."""
        left, right = (np.asarray(side, dtype=np.float64) for side in (self.left, self.right))
        if left.ndim != 2 or right.ndim < 2 or left.shape[1] != right.shape[0]:  # noqa: PLR2004  (axes)
            raise SiteError(
                "LowRank: left must have the shape (out, r) and right (r, in).\n"
                f"However, they have {left.shape} and {right.shape}."
            )
        object.__setattr__(self, "left", left)
        object.__setattr__(self, "right", right)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the update, out axis first."""
        return (self.left.shape[0], *self.right.shape[1:])


Update = npt.ArrayLike | LowRank  # of one site, of its shape


def low_rank(adapter: Adapter, params: Mapping[str, npt.ArrayLike]) -> dict[Site, Array | LowRank]:
    """The update of every site of an adapter, as `project` takes them; exact to rounding.

    A `LowRank` of the rank of the minimum cut, found by a random sketch of the network, without the dense update; the
    dense update where that is no larger. Raises SiteError for params that are not this adapter's.
    """
    drawn = init(adapter)
    arrays = {name: given_params(params, name, drawn[name]) for name in drawn}
    return {site: _sketched(adapter, adapter.find(site)[0], site, arrays, drawn) for site in adapter.sites}


def _sketched(adapter: Adapter, group: Group, site: Site, params: Params, drawn: Params) -> Array | LowRank:
    network = group.network
    terms = [(network.scale, _operands_at(adapter, group, site, params))]
    if network.centered:
        terms.append((-network.scale, _operands_at(adapter, group, site, drawn)))

    def part(answer: Modes, *further: Operand) -> Array:
        shape = [network.sizes.get(mode, width) for mode in answer]
        return sum((factor * contract([*one, *further], answer) for factor, one in terms), np.zeros(shape))

    rows, columns = network.volume(network.out_modes), network.volume(network.in_modes)
    cut = minimum_cut(network).rank
    width = min(cut + SPARE, columns)
    if cut * (rows + columns) >= rows * columns:
        return part((*network.out_modes, *network.in_modes)).reshape(site.shape)
    random = np.random.default_rng(0)
    sketch = random.standard_normal([*(network.sizes[mode] for mode in network.in_modes), width])
    image = part((*network.out_modes, INNER), (sketch, (*network.in_modes, INNER)))
    width = min(cut, rows)
    left = np.linalg.svd(image.reshape(rows, -1), full_matrices=False)[0][:, :width]
    shape = [network.sizes[mode] for mode in network.out_modes]
    right = part((INNER, *network.in_modes), (left.reshape(*shape, -1), (*network.out_modes, INNER)))
    return LowRank(left, right.reshape(-1, *site.shape[1:]))


def _operands_at(adapter: Adapter, group: Group, site: Site, params: Params) -> list[Operand]:
    """The factors at one site, without site modes."""
    index, network = group.index(site), group.network
    return [
        (
            params[adapter.slot_name(group, name)][
                tuple(index.get(mode, slice(network.sizes[mode])) for mode in factor.modes)
            ],
            network.local_modes(name),
        )
        for name, factor in network.factors.items()
    ]


def check_update(site: Site, update: Array | LowRank) -> None:
    if update.shape != site.shape:
        raise SiteError(
            f"{site.path}: its update must have shape {site.shape}.\nHowever, the one given has {update.shape}."
        )
    parts = (update.left, update.right) if isinstance(update, LowRank) else (update,)
    if not all(np.isfinite(part).all() for part in parts):
        raise SiteError(f"{site.path}: its update must be finite.\nHowever, it holds NaN or infinity.")


def given_params(params: Mapping[str, npt.ArrayLike], name: str, drawn: Array) -> Array:
    if name not in params:
        raise SiteError(f"params: {name!r} is missing.")
    array = np.asarray(params[name], dtype=np.float64)
    if array.shape != drawn.shape:
        raise SiteError(f"params[{name!r}]: must have shape {drawn.shape}.\nHowever, it has {array.shape}.")
    return array


def terms_of(group: Group, updates: Mapping[Site, Array | LowRank]) -> tuple[Term, ...]:
    """The updates of a group's sites, stacked over its grid: dense ones in one term, low-rank ones in another."""
    at = {site: tuple(group.index(site).values()) for site in group.sites}
    dense, thin = {}, {}
    for site, place in at.items():
        update = updates[site]
        if isinstance(update, LowRank):
            thin[place] = update
        else:
            dense[place] = update
    return (*_dense_term(group.network, dense), *_thin_term(group.network, thin))


def _dense_term(network: Network, updates: Mapping[Place, Array]) -> Iterator[Term]:
    if updates:
        grid, out, inner = _shapes(network)
        stack = np.zeros([*grid, *out, *inner])
        for place, update in updates.items():
            stack[place] = update.reshape([*out, *inner])
        yield ((stack, (*network.over, *network.out_modes, *network.in_modes)),)


def _thin_term(network: Network, updates: Mapping[Place, LowRank]) -> Iterator[Term]:
    """Of several ranks, the smaller ones are filled up with zeros."""
    if updates:
        grid, out, inner = _shapes(network)
        width = max(update.left.shape[1] for update in updates.values())
        left, right = np.zeros([*grid, *out, width]), np.zeros([*grid, width, *inner])
        for place, update in updates.items():
            rank = update.left.shape[1]
            left[place][..., :rank] = update.left.reshape(*out, rank)
            right[place][:rank] = update.right.reshape(rank, *inner)
        over = network.over
        yield ((left, (*over, *network.out_modes, INNER)), (right, (*over, INNER, *network.in_modes)))


def _shapes(network: Network) -> list[list[int]]:
    """Sizes of the site modes, of the out modes and of the in modes."""
    return [[network.sizes[mode] for mode in modes] for modes in (network.over, network.out_modes, network.in_modes)]
