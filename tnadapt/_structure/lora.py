"""Write an update as a LoRA: cut the network of one site at its minimum cut, and contract each half."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import opt_einsum

from tnadapt._errors import PlanError, SiteError
from tnadapt._hosts import Site, check_size
from tnadapt._language import Adapter, Network, expect_adapter, expect_params
from tnadapt._signature import answers
from tnadapt._structure.rank import Parting, minimum_cut, partings
from tnadapt._values import arrays_at, delta

__all__ = ["LoRA", "to_lora"]

Array = npt.NDArray[np.float64]
Modes = tuple[str, ...]


class LoRA(NamedTuple):
    """An update scale * B @ A in float64: A is (rank, in), B is (out, rank). The in axes are flattened, row-major.

    `error` is the Frobenius norm of the part that was truncated, relative to that of the update; 0.0 if nothing was.
    """

    A: Array
    B: Array
    scale: float
    error: float = 0.0

    @property
    def rank(self) -> int:
        """The rank: the number of rows of A."""
        return len(self.A)


@answers(SiteError)
def to_lora(
    adapter: Adapter, params: Mapping[str, npt.ArrayLike], site: Site | str, *, rank: int | None = None
) -> LoRA:
    """Return the update of one site as a LoRA, exact up to rounding, of the rank that `rank_bound` returns.

    The network is cut at its minimum cut between out and in, and each half is contracted, without an SVD or a dense
    update. Where terms differ on one side of the cut only, that half is their sum; otherwise the halves of the terms
    are stacked, and their ranks add up. So are the halves of all sites, for the path of a weight that contains several.

    A smaller `rank` gives the best approximation of that rank, by QR of both halves and the SVD of a matrix of the
    cut's size. If the cut is not below min(out, in), a half is as large as the dense update. Such a full-rank update is
    exported only if `rank` is given.

    Raises:
        PlanError: a full-rank update without `rank`.
        SiteError: a site or params that do not belong to this adapter; a rank that is not a positive integer, or one
            for an update that is not finite; a weight of experts, or one whose sites serve several tasks.
    """
    expect_adapter(adapter, "to_lora")
    expect_params(params, "to_lora")
    parts = adapter.parts(site) if isinstance(site, str) else ()
    sites = parts or (adapter.find(site)[1],)
    check_exportable(adapter, sites, rank, is_weight=bool(parts))
    loras = [exact_lora(adapter, params, one) for one in sites]
    return shorten(join(loras, parts) if parts else loras[0], rank)


def check_exportable(adapter: Adapter, sites: Sequence[Site], rank: int | None, *, is_weight: bool) -> None:
    """Raise the errors of `to_lora` for one site, or for the sites of a weight, before anything is contracted."""
    if rank is not None:
        check_size("rank", rank)
    first = sites[0]
    path, shape = (first.weight, first.weight_shape) if is_weight else (first.path, first.shape)
    if len(shape) > len(first.shape):
        raise SiteError(f"{path}: expected a single weight, got several of shape {shape}.\nPass one of its sites.")
    cuts = [minimum_cut(adapter.find(site)[0].network) for site in sites]
    most, rows, columns = sum(cut.rank for cut in cuts), shape[0], math.prod(shape[1:])
    if rank is None and most >= min(rows, columns):
        told = f"its sites have ranks that add up to {most:,}" if is_weight else f"its minimum cut is {cuts[0]}"
        raise PlanError(
            f"{path}: expected an update of less than full rank, got full rank: {told}, of a weight {rows} x "
            f"{columns}.\nA LoRA of full rank is no smaller than the update. Pass rank= for the best approximation of "
            f"that rank; rank={most} would be exact."
        )


def exact_lora(adapter: Adapter, params: Mapping[str, npt.ArrayLike], site: Site) -> LoRA:
    """Return the update of one site as an exact LoRA, whatever its rank.

    `params` may also have the starting values that the update uses, if they were drawn before.
    """
    address = adapter.address(site)
    if address.magnitude is not None:  # it scales the rows of the host's weight as well: no half of a network is thin
        dense = delta(adapter, params, site)
        return LoRA(dense.reshape(len(dense), -1), np.eye(len(dense)), 1.0)
    network, arrays = address.group.network, arrays_at(adapter, params, address)
    halves = [_halves(network, parting, arrays) for parting in partings(network)]
    return LoRA(np.vstack([A for _, A in halves]), np.hstack([B for B, _ in halves]), network.scale)


def join(loras: Sequence[LoRA], sites: Sequence[Site]) -> LoRA:
    """Return the LoRA of a weight by stacking those of the sites in it. It takes the largest of their scales."""
    shape, total = sites[0].weight_shape, sum(lora.rank for lora in loras)
    scale = max((lora.scale for lora in loras), key=abs)
    A, B = np.zeros((total, *shape[1:])), np.zeros((shape[0], total))
    done = 0
    for lora, site in zip(loras, sites, strict=True):
        rows, *columns = site.rectangle
        bond = slice(done, done + lora.rank)
        A[(bond, *columns)] = lora.A.reshape(lora.rank, *site.shape[1:])
        B[rows, bond] = lora.B * (lora.scale / scale if scale else 1.0)
        done = bond.stop
    return LoRA(A.reshape(total, -1), B, scale)


def shorten(lora: LoRA, rank: int | None) -> LoRA:
    """Return the nearest LoRA of this rank, by the SVD of a matrix of the old rank's size.

    A LoRA whose rank is not larger is returned as it is.
    """
    if rank is None or rank >= lora.rank:
        return lora
    left, upper = np.linalg.qr(lora.B)
    right, lower = np.linalg.qr(lora.A.T)
    with np.errstate(over="ignore", invalid="ignore"):
        middle = upper @ lower.T
    if not np.isfinite(middle).all():
        raise SiteError(
            "params: expected numbers whose update is finite, got NaN or infinity.\nNo rank approximates it."
        )
    rows, values, columns = np.linalg.svd(middle, full_matrices=False)
    root, total = np.sqrt(values[:rank]), float(np.linalg.norm(values))
    error = float(np.linalg.norm(values[rank:])) / total if total else 0.0
    return LoRA((root[:, None] * columns[:rank]) @ right.T, left @ (rows[:, :rank] * root), lora.scale, error)


def _halves(network: Network, parting: Parting, arrays: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return the sums of the products of the nodes on either side of a cut, of shapes (out, cut) and (cut, in).

    The side that all terms share is contracted once.
    """
    terms = parting.terms
    rows = [tuple(name for name in term.nodes if name in parting.rows) for term in terms]
    columns = [tuple(name for name in term.nodes if name not in parting.rows) for term in terms]
    touched = [
        {mode for names in side for name in names for mode in network.local_modes(name)} for side in (rows, columns)
    ]
    above, below = touched[0] | {*network.out_modes}, touched[1] | {*network.in_modes}
    cut = tuple(mode for mode in network.sizes if mode in above and mode in below)

    def side(names: Sequence[str], first: Modes, second: Modes) -> Array:
        return _matrix(network, {name: arrays[name] for name in names}, first, second)

    def total(sides: Sequence[Sequence[str]], first: Modes, second: Modes, *, is_shared: bool) -> Array:
        if is_shared:
            return side(sides[0], first, second)
        signed = [term.sign * side(names, first, second) for term, names in zip(terms, sides, strict=True)]
        return sum(signed[1:], signed[0])

    up = total(rows, network.out_modes, cut, is_shared=parting.shared_rows)
    return up, total(columns, cut, network.in_modes, is_shared=not parting.shared_rows)


def _matrix(network: Network, arrays: Mapping[str, Array], rows: tuple[str, ...], columns: tuple[str, ...]) -> Array:
    """Return the product of some factors, summed over all modes that are neither rows nor columns.

    If a mode of the weight is itself cut, it is both a row and a column mode, and the product is diagonal in it. The
    product is constant along a mode that none of the factors has.
    """
    letters = {mode: number for number, mode in enumerate(network.sizes)}
    outer = tuple(dict.fromkeys([*rows, *columns]))
    carried = {mode for name in arrays for mode in network.local_modes(name)}
    operands: list[Any] = [np.ones(()), []]
    for name, array in arrays.items():
        operands += [array, [letters[mode] for mode in network.local_modes(name)]]
    product: Array = opt_einsum.contract(*operands, [letters[mode] for mode in outer if mode in carried])
    if len(outer) == len(rows) + len(columns):
        bare = product.reshape([network.sizes[mode] if mode in carried else 1 for mode in outer])
        product = np.broadcast_to(bare, [network.sizes[mode] for mode in outer])
    if len(outer) < len(rows) + len(columns):
        whole = np.zeros([network.sizes[mode] for mode in (*rows, *columns)])
        inner, outer_letters = ([letters[mode] for mode in modes] for modes in ((*rows, *columns), outer))
        # An einsum that takes a diagonal returns a writable view.
        diagonal: Array = np.einsum(whole, inner, outer_letters)  # type: ignore[arg-type]  # typed for strings alone
        diagonal[...] = product.reshape([network.sizes[mode] if mode in carried else 1 for mode in outer])
        product = whole
    return np.ascontiguousarray(product).reshape(network.volume(rows), network.volume(columns))
