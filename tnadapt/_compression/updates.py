"""The updates that an adapter is fitted to: dense or as LoRAs, checked and stacked over the grid of a network."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from tnadapt._compression.least_squares import Term
from tnadapt._errors import SiteError
from tnadapt._hosts import Site
from tnadapt._language import Adapter, Group, Network, expect_adapter, expect_params
from tnadapt._signature import answers
from tnadapt._structure import LoRA, exact_lora, minimum_cut
from tnadapt._values import Array, delta, drawn_starts

__all__ = ["low_rank_updates"]

INNER = "(rank)"
MATRIX = 2  # axes
Place = tuple[int, ...]
Update = Array | LoRA


@answers(SiteError)
def low_rank_updates(adapter: Adapter, params: Mapping[str, npt.ArrayLike]) -> dict[Site, Update]:
    """Return the update of every site of an adapter for `compress`: a `LoRA`, or a dense array if that is no larger.

    Raises SiteError for params that do not belong to this adapter.
    """
    expect_adapter(adapter, "low_rank_updates")
    expect_params(params, "low_rank_updates")
    values = {**params, **drawn_starts(adapter)}
    found: dict[Site, Update] = {}
    for site in adapter.sites:
        group, _ = adapter.find(site)
        rows, columns = site.shape[0], math.prod(site.shape[1:])
        if minimum_cut(group.network).rank * (rows + columns) < rows * columns:
            found[site] = exact_lora(adapter, values, site)
        else:
            found[site] = delta(adapter, values, site)
    return found


def check_update(site: Site, update: npt.ArrayLike | LoRA) -> Update:
    """Return the update as an array or a LoRA. Raises SiteError unless it is finite and fits the site's shape."""
    if not isinstance(update, LoRA):
        dense = np.asarray(update)
        _check(site, dense.shape, site.shape, dense)
        return dense
    left, right = np.asarray(update.B), np.asarray(update.A)
    if left.ndim != MATRIX or right.ndim != MATRIX or left.shape[1] != right.shape[0]:
        raise SiteError(
            f"{site.path}: expected a LoRA with a B of shape (out, rank) and an A of shape (rank, in), got "
            f"{left.shape} and {right.shape}."
        )
    _check(site, (len(left), right.shape[1]), (site.shape[0], math.prod(site.shape[1:])), left, right, update.scale)
    return update


def _check(site: Site, shape: tuple[int, ...], wanted: tuple[int, ...], *parts: npt.ArrayLike) -> None:
    if shape != wanted:
        raise SiteError(f"{site.path}: expected an update of shape {wanted}, got {shape}.")
    if not all(np.isfinite(part).all() for part in parts):
        raise SiteError(f"{site.path}: expected a finite update, got NaN or infinity.")


def terms_of(group: Group, updates: Mapping[Site, Update]) -> tuple[Term, ...]:
    """Stack the updates of a group's sites over its grid: dense ones in one term, LoRAs in another."""
    dense: dict[Place, Array] = {}
    thin: dict[Place, LoRA] = {}
    for site in group.sites:
        place, update = tuple(group.index(site).values()), updates[site]
        if isinstance(update, LoRA):
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


def _thin_term(network: Network, updates: Mapping[Place, LoRA]) -> Iterator[Term]:
    """Stack the LoRAs, padded with zeros to the largest of their ranks."""
    if updates:
        grid, out, inner = _shapes(network)
        width = max(update.rank for update in updates.values())
        left, right = np.zeros([*grid, *out, width]), np.zeros([*grid, width, *inner])
        for place, update in updates.items():
            left[place][..., : update.rank] = update.scale * update.B.reshape(*out, update.rank)
            right[place][: update.rank] = update.A.reshape(update.rank, *inner)
        over = network.over
        yield ((left, (*over, *network.out_modes, INNER)), (right, (*over, INNER, *network.in_modes)))


def _shapes(network: Network) -> list[list[int]]:
    """Return the sizes of the site modes, of the out modes and of the in modes."""
    return [[network.sizes[mode] for mode in modes] for modes in (network.over, network.out_modes, network.in_modes)]
