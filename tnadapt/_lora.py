"""An update as a LoRA: the network of one site cut where it is thinnest, and each half contracted."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import opt_einsum

from tnadapt._apply import arrays_at, starts_of
from tnadapt._errors import PlanError
from tnadapt._network import Network, Site, check_size
from tnadapt._rank import Parting, part
from tnadapt._spec import Adapter

__all__ = ["LoRA", "to_lora"]

Array = npt.NDArray[np.float64]


class LoRA(NamedTuple):
    """An update scale * B @ A: A is (rank, in), B is (out, rank), in float64; the in axes are flattened, row-major.

    `error` is the Frobenius norm of what was cut off, relative to that of the update; 0.0 where nothing was.
    """

    A: Array
    B: Array
    scale: float
    error: float = 0.0

    @property
    def rank(self) -> int:
        """The length of the bond."""
        return len(self.A)


def to_lora(
    adapter: Adapter, params: Mapping[str, npt.ArrayLike], site: Site | str, *, rank: int | None = None
) -> LoRA:
    """The update of one site as a LoRA, exact to rounding, of the rank that `rank_bound` tells.

    The network is cut at its minimum cut between out and in, and each half is contracted: no SVD, no dense update. A
    centered update is the difference of two networks. Where all that is trained is on one side of a cut, that half
    is a difference; else the halves of both networks lie side by side, and the rank is twice the cut.

    A `rank` below the cut gives the best approximation of that rank, by QR of both halves and the SVD of a matrix of
    the cut's size. Where the cut is not below min(out, in), a half is as large as the dense update, and so is this
    work: such a full-rank update is exported only when told a rank.

    Raises:
        PlanError: a full-rank update without `rank`.
        SiteError: a site or params that are not this adapter's; a rank that is no positive integer.
    """
    group, place = adapter.find(site)
    parting = part(group.network)
    check_exportable(place, parting, rank)
    arrays = arrays_at(adapter, params, group, place)
    starts = arrays_at(adapter, starts_of(adapter, group), group, place) if adapter.spec.centered else None
    return cut_in_two(group.network, parting, arrays, starts, rank)


def check_exportable(site: Site, parting: Parting, rank: int | None) -> None:
    """Raises PlanError for a full-rank update without a rank, SiteError for a rank that is none."""
    if rank is not None:
        check_size("rank", rank)
        return
    rows, columns = site.shape[0], int(np.prod(site.shape[1:]))
    if parting.cut.rank >= min(rows, columns):
        raise PlanError(
            f"{site.path}: a LoRA is smaller than the update that it stands for.\n"
            f"However, this update has full rank: its minimum cut is {parting.cut} of a weight {rows} x {columns}.\n"
            f"Pass rank= for the best approximation of that rank; rank={parting.cut.rank} would be exact."
        )


def cut_in_two(
    network: Network,
    parting: Parting,
    arrays: Mapping[str, Array],
    starts: Mapping[str, Array] | None,
    rank: int | None,
) -> LoRA:
    """The LoRA of a network with these factors, less that of the same network with its starting values if any."""
    B, A = _halves(network, parting.row_factors, arrays)
    if starts is not None:
        start_B, start_A = _halves(network, parting.row_factors, starts)
        trained = {name for name, factor in network.factors.items() if factor.trainable}
        if parting.cut.times > 1:
            B, A = np.hstack([B, -start_B]), np.vstack([A, start_A])
        elif trained <= parting.row_factors:
            B = B - start_B
        else:
            A = A - start_A
    if rank is None or rank >= len(A):
        return LoRA(A, B, network.scale)
    return _truncate(A, B, network.scale, rank)


def _halves(network: Network, row_factors: Collection[str], arrays: Mapping[str, Array]) -> tuple[Array, Array]:
    """(out, cut) and (cut, in): the products of the factors on either side of a cut."""
    sides = [[name for name in arrays if (name in row_factors) == is_row] for is_row in (True, False)]
    touched = [{mode for name in side for mode in network.local_modes(name)} for side in sides]
    rows, columns = touched[0] | {*network.out_modes}, touched[1] | {*network.in_modes}
    cut = tuple(mode for mode in network.sizes if mode in rows and mode in columns)
    up = _matrix(network, {name: arrays[name] for name in sides[0]}, network.out_modes, cut)
    down = _matrix(network, {name: arrays[name] for name in sides[1]}, cut, network.in_modes)
    return up, down


def _matrix(network: Network, arrays: Mapping[str, Array], rows: tuple[str, ...], columns: tuple[str, ...]) -> Array:
    """The product of some factors, summed over all modes that are neither rows nor columns.

    A mode that is both, since a mode of the weight is itself cut, stands on the diagonal of the two.
    """
    letters = {mode: number for number, mode in enumerate(network.sizes)}
    outer = tuple(dict.fromkeys([*rows, *columns]))
    carried = {mode for name in arrays for mode in network.local_modes(name)}
    operands: list[Any] = [np.ones(()), []]
    for name, array in arrays.items():
        operands += [array, [letters[mode] for mode in network.local_modes(name)]]
    product: Array = opt_einsum.contract(*operands, [letters[mode] for mode in outer if mode in carried])
    if len(outer) < len(rows) + len(columns):
        whole = np.zeros([network.sizes[mode] for mode in (*rows, *columns)])
        inner, outer_letters = ([letters[mode] for mode in modes] for modes in ((*rows, *columns), outer))
        # An einsum that takes a diagonal is a view, which can be written to.
        diagonal: Array = np.einsum(whole, inner, outer_letters)  # type: ignore[arg-type]  # typed for strings alone
        diagonal[...] = product.reshape([network.sizes[mode] if mode in carried else 1 for mode in outer])
        product = whole
    return np.ascontiguousarray(product).reshape(network.volume(rows), network.volume(columns))


def _truncate(A: Array, B: Array, scale: float, rank: int) -> LoRA:
    """The nearest B @ A of this rank, without the product being made."""
    left, upper = np.linalg.qr(B)
    right, lower = np.linalg.qr(A.T)
    rows, values, columns = np.linalg.svd(upper @ lower.T, full_matrices=False)
    root, total = np.sqrt(values[:rank]), float(np.linalg.norm(values))
    error = float(np.linalg.norm(values[rank:])) / total if total else 0.0
    return LoRA((root[:, None] * columns[:rank]) @ right.T, left @ (rows[:, :rank] * root), scale, error)
