"""Round the bonds of a tree of factors by truncated singular value decompositions, one bond after the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError
from tnadapt._hosts import check_size
from tnadapt._language import Adapter, expect_adapter
from tnadapt._signature import answers, mistake, told
from tnadapt._values import Params
from tnadapt.policies._bonds import Bond, every_bond, expect_arrays, find_bonds, refuse, resized
from tnadapt.policies._change import Change, Selection, Transport
from tnadapt.policies._scale import compensation
from tnadapt.policies._tree import Edge, arrays_of, find_edge, norms_of_others, root_of

__all__ = ["sweep"]

Array = npt.NDArray[np.float64]
WHERE = "sweep"
NOISE = 1e-14  # of the largest singular value, for each of them: what rounding leaves of 0


@answers(SiteError)
def sweep(
    adapter: Adapter,
    params: Mapping[str, npt.ArrayLike],
    rank: int | None = None,
    tol: float | None = None,
    bond: str | None = None,
) -> Change:
    """Round bonds to their leading singular values, and return the change, as the DMRG-like sweep of MetaTT does.

    Cutting a tree of factors at a bond splits it into two sides. The singular values of the matrix that they make,
    over the outer modes of all sites, are those of the bond; the two factors that carry it get the leading ones, half
    of each. Over all bonds the squares of the discarded values, `errors` of the change, add up to the square of the
    Frobenius norm of what all updates together lose. (A combination of site indices without a site counts as one.)
    Singular values of 0 are discarded in any case, but of an update that is 0 only slices above `rank`.

    Args:
        adapter: the adapter.
        params: its arrays by name.
        rank: the largest rank of a bond afterwards.
        tol: the smallest singular value to keep, relative to the largest one of the bond.
        bond: the name of a bond, for all groups, or "<group>.<bond>"; by default every bond that can be rounded.

    Raises:
        SiteError: a bond is no edge between two trained factors of a tree, or there is none.
    """
    adapter = expect_adapter(adapter, WHERE)
    arrays = expect_arrays(adapter, params, WHERE)
    most = None if rank is None else check_size(f"{WHERE}: rank", rank)
    if tol is not None and (isinstance(tol, bool) or not isinstance(tol, Real) or not 0 <= float(tol) < 1):
        todo = "Write tol=1e-3: smaller singular values, relative to the largest, are discarded."
        raise mistake(SiteError, WHERE, "a number from 0 to 1 as tol", told(tol), todo)
    edges = _edges(adapter, bond)
    values, sizes, errors = dict(arrays), {}, {}
    moves: dict[str, list[Selection | Transport]] = {}
    for one, edge in edges:
        rounding = _round(adapter, one, edge, values, (most, 0.0 if tol is None else float(tol)))
        for name, value, move in rounding.ends:
            values[name] = value
            moves.setdefault(name, []).append(move)
        sizes[one.name], errors[one.name] = (rounding.rank,), rounding.lost
    after = resized(adapter, sizes)
    factors = compensation(adapter, after, WHERE)
    values |= {name: values[name] * ratio for name, ratio in factors.items()}
    return Change(before=adapter, adapter=after, params=values, moves=moves, factors=factors, errors=errors)


def why_not_swept(adapter: Adapter, bond: Bond) -> str:
    """Say why a bond cannot be rounded; "" if it can."""
    found = find_edge(adapter, bond)
    return found if isinstance(found, str) else ""


def _edges(adapter: Adapter, name: str | None) -> list[tuple[Bond, Edge]]:
    """Return the bonds to round. Raises SiteError for one that was named and cannot be, or if there is none."""
    chosen = list(every_bond(adapter).values()) if name is None else find_bonds(adapter, name, WHERE)
    found = []
    reasons: dict[str, str] = {}
    for bond in chosen:
        edge = find_edge(adapter, bond)
        if isinstance(edge, str):
            reasons[bond.mode] = edge
            if name is not None:
                raise refuse(WHERE, bond, edge)
        else:
            found.append((bond, edge))
    if not found:
        why = "; ".join(f"{mode!r}: {reason}" for mode, reason in reasons.items()) or "it has no bonds"
        raise SiteError(
            f"{WHERE}: expected an adapter with a bond between two trained factors of a tree, got "
            f"{adapter.spec.name} ({why})."
        )
    return found


@dataclass(frozen=True)
class Rounded:
    """The new values of the two carriers of a bond, with the moves of their gradients, its rank and what was lost."""

    ends: tuple[tuple[str, Array, Selection | Transport], ...]
    rank: int
    lost: Array


def _round(adapter: Adapter, bond: Bond, edge: Edge, params: Params, limit: tuple[int | None, float]) -> Rounded:
    most, tol = limit
    (group,) = bond.groups
    network = group.network
    arrays = arrays_of(adapter, group, params)
    modes = {name: network.nodes[name].modes for name in edge.nodes}
    left, right = (root_of(edge, arrays, modes, end) for end in edge.ends)
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise SiteError(
            f"{WHERE}: expected finite params of {bond.name!r}, got NaN or infinity among them.\n"
            "Go back to params from before the training failed."
        )
    u, s, vt = np.linalg.svd(left @ right.swapaxes(-1, -2), full_matrices=False)
    size = left.shape[-1]
    slots = [adapter.slots[adapter.slot_name(group, network.nodes[end].factor)] for end in edge.ends]
    axes = [slot.factor.held.index(edge.bond) for slot in slots]
    if s.max(initial=0.0) == 0.0:
        rank = min(size, most or size)
        chosen = [Selection(axis, tuple(range(rank))) for axis in axes]
        ends = tuple((x.name, m.move(params[x.name], squared=False), m) for x, m in zip(slots, chosen, strict=True))
        return Rounded(ends, rank, np.zeros(0))
    noise = NOISE * size * s.max()
    counts = (s > max(noise, tol * s.max())).sum(axis=-1)
    rank = min(int(counts.max()), most or size)
    bases = _bases(left, right, (u, s, vt), rank, noise)
    lost = abs(network.scale) * norms_of_others(edge, group, arrays)[..., None] * s[..., rank:]
    ends_made = []
    for slot, axis, basis, dual in zip(slots, axes, bases, reversed(bases), strict=True):
        batch = tuple(slot.factor.held.index(mode) for mode in edge.batch)
        value = Transport(axis, basis, batch).move(params[slot.name], squared=False)
        ends_made.append((slot.name, value, Transport(axis, dual, batch)))
    return Rounded(tuple(ends_made), rank, np.sort(lost.reshape(-1))[::-1])


def _bases(
    left: Array, right: Array, parts: tuple[Array, Array, Array], rank: int, noise: float
) -> tuple[Array, Array]:
    """Return the matrices (batch, size, rank) by which the two carriers are multiplied.

    The left one is R_right^T V S^(-1/2), the right one R_left^T U S^(-1/2): each is the other's dual basis, and
    multiplies the other's gradient. Where the singular value of an index of the batch is 0, but others are not, the
    left factor gets 0, and the right one its largest slice, so that the slice can still be trained; or the reverse, if
    the right factor is 0 there.
    """
    u, s, vt = (parts[0][..., :rank], parts[1][..., :rank], parts[2][..., :rank, :])
    living = (s > noise)[..., None, :]
    root = np.sqrt(np.where(s > noise, s, 1.0))[..., None, :]
    is_empty = ~right.any(axis=(-2, -1), keepdims=True)  # then it is the left factor that has something to keep
    on_left = np.where(living, right.swapaxes(-1, -2) @ vt.swapaxes(-1, -2) / root, is_empty * _largest(left))
    on_right = np.where(living, left.swapaxes(-1, -2) @ u / root, ~is_empty * _largest(right))
    return on_left, on_right


def _largest(side: Array) -> Array:
    """Return the column (batch, size, 1) that selects the largest slice of a side."""
    place = np.argmax(np.linalg.norm(side, axis=-2), axis=-1)
    return np.asarray(np.eye(side.shape[-1])[place][..., None])
