"""Starting values that are read from the host's weights, by a decomposition of the weights of a group's sites."""

import math
from collections.abc import Callable, Collection, Mapping

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError
from tnadapt._hosts import Site
from tnadapt._language import HOST, HOST_PARTS, Adapter, Group, Network
from tnadapt._progress import watched
from tnadapt._signature import mistake, told
from tnadapt._values.einsum import contract

__all__: list[str] = []

LARGE = 256  # up to this length of the short side, a full decomposition takes milliseconds
FEW = 8  # if the short side is at least this many times the rank, a partial decomposition is faster

Array = npt.NDArray[np.float64]
Weights = Mapping[str, npt.ArrayLike]


class Stack:
    """The weights of a group's sites as one array (site modes, weight modes), and its decompositions so far."""

    def __init__(self, group: Group, weights: Weights) -> None:
        """Stack the weights.

        Raises SiteError for a weight that is missing or has the wrong shape, and for a grid with holes.
        """
        self.network = group.network
        network = group.network
        self.modes = (*network.over, *network.out_modes, *network.in_modes)
        values = np.zeros([network.sizes[mode] for mode in self.modes])
        for site in group.sites:
            index = tuple(group.index(site)[mode] for mode in network.over)
            values[index] = _weight_of(site, weights).reshape(values.shape[len(index) :])
        if group.places is not None:
            raise SiteError(
                f"{group.sites[0].path}: expected a site for every combination of ({' '.join(network.over)}), got a "
                "grid with holes.\nStarts are read from the weights of the whole grid. Add the missing sites, or take "
                "a drawn initializer."
            )
        self.values = values
        self.decompositions: dict[tuple[int | str, ...], tuple[Array, ...]] = {}
        self.trains: list[Array] | None = None

    def matrices(self, batch: tuple[str, ...], rows: tuple[str, ...]) -> Array:
        """Return the stack as an array (batch, rows, all other modes)."""
        others = tuple(mode for mode in self.modes if mode not in batch and mode not in rows)
        turned = np.transpose(self.values, [self.modes.index(mode) for mode in (*batch, *rows, *others)])
        return turned.reshape(self.network.volume(batch), self.network.volume(rows), -1)


def read_start(factor: str, stack: Stack, starts: Callable[[str], Array]) -> Array:
    """Return the starting values of one factor of a group, in the factor's shape.

    `starts` returns those of any other factor of the group. Raises SiteError unless all weights are finite.
    """
    if not np.isfinite(stack.values).all():
        raise SiteError(f"{factor}: expected finite host weights to read its start from, got NaN or infinity.")
    initializer = stack.network.factors[factor].init
    read = {"svd": _svd, "tt_svd": _tt_svd, "hosvd_core": _hosvd_core, "t_svd": _t_svd, "tensor_cur": _tensor_cur}
    values = initializer.amount * read[initializer.kind](factor, stack, starts)
    if initializer.share:  # a negative scale turns the sign of one factor of the decomposition: that with out modes
        scale = stack.network.scale
        turned = scale < 0 and set(stack.network.factors[factor].modes) & set(stack.network.out_modes)
        values = values * ((-1.0 if turned else 1.0) / abs(scale) ** initializer.share)
    return np.array(values, order="C")  # the layout of an array that was loaded from a file


def read_hosts(adapter: Adapter, weights: Weights | None, kinds: Collection[str] = HOST) -> dict[str, Array]:
    """Return the entries of params that are the host's weights, their patterns or parts of their SVDs, of these kinds.

    Each has the shape (out axis first) of the weight, of U, of the singular values or of V^T.
    Raises SiteError for a weight that is missing or has the wrong shape.
    """
    wanted = [name for name, (_, kind) in adapter.hosts.items() if kind in kinds]
    if wanted and weights is None:
        raise SiteError(
            f"{adapter.spec.name}: expected the host's weights, which are a factor of it, got none.\n"
            "Pass init(adapter, weights), with a mapping from paths to arrays (out, in)."
        )
    reader = HostReader(adapter, weights or {})
    with watched(wanted, "read the weights") as names:
        return {name: reader.read(name) for name in names}


class HostReader:
    """Reads single entries of params that are the host's weights.

    The SVD of one site's weight is kept until a part of another is read: a site's parts are read one after another.
    """

    def __init__(self, adapter: Adapter, weights: Weights) -> None:
        """Store the adapter, and the host's weights by path."""
        self.adapter, self.weights = adapter, weights
        self._parts: tuple[str, tuple[Array, ...]] = "", ()

    def read(self, name: str) -> Array:
        """Return a weight, its pattern or a part of its SVD, by its name in params.

        Raises SiteError for a weight that is missing or has the wrong shape.
        """
        site, kind = self.adapter.hosts[name]
        if kind in HOST_PARTS:
            return self._parts_of(site)[HOST_PARTS.index(kind)]
        weight = _weight_of(site, self.weights)
        return weight if kind == "host" else (weight != 0).astype(np.float64)

    def _parts_of(self, site: Site) -> tuple[Array, ...]:
        if self._parts[0] != site.path:
            weight = _weight_of(site, self.weights)
            parts = np.linalg.svd(weight.reshape(len(weight), -1), full_matrices=False)
            self._parts = site.path, tuple(parts)
        return self._parts[1]


def _weight_of(site: Site, weights: Weights) -> Array:
    if site.weight not in weights:
        raise SiteError(
            f"{site.path}: expected the host's weight {site.weight} to read its start from, got none.\n"
            "Add it to the weights."
        )
    try:
        whole = np.asarray(weights[site.weight], dtype=np.float64)
    except (TypeError, ValueError) as error:
        todo = "In JAX, pass leaves.read(tree), where leaves is what find_sites returned."
        given = told(weights[site.weight])
        raise mistake(SiteError, site.weight, "the weight as an array (out, in)", given, todo) from error
    if whole.shape != site.weight_shape:
        raise SiteError(f"{site.weight}: expected shape {site.weight_shape}, got {whole.shape}.")
    return np.asarray(whole[site.rectangle])


def _roles(network: Network, factor: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return a factor's site modes, weight modes and bonds."""
    modes = network.factors[factor].modes
    weight = {*network.out_modes, *network.in_modes}
    return (
        tuple(mode for mode in modes if mode in network.over),
        tuple(mode for mode in modes if mode in weight),
        tuple(mode for mode in modes if mode not in network.over and mode not in weight),
    )


def _laid(network: Network, factor: str, values: Array, modes: tuple[str, ...]) -> Array:
    """Return values whose axes have these modes in the factor's order of modes."""
    shaped = values.reshape([network.sizes[mode] for mode in modes])
    return np.transpose(shaped, [modes.index(mode) for mode in network.factors[factor].modes])


def _svd(factor: str, stack: Stack, starts: Callable[[str], Array]) -> Array:
    """Return the leading singular vectors of an unfolding, scaled by the singular values ** power.

    The rows of the unfolding are the factor's weight modes. A factor that carries only in modes takes the right
    singular vectors; the factor of the other modes takes the left ones of the same matrix, so both belong to one
    decomposition.
    """
    network = stack.network
    batch, rows, (bond,) = _roles(network, factor)
    others = tuple(mode for mode in stack.modes if mode not in batch and mode not in rows)
    is_right = not set(rows) & set(network.out_modes)
    left = others if is_right else rows
    key: tuple[int | str, ...] = (network.sizes[bond], *batch, "|", *left)
    if key not in stack.decompositions:
        found = [_leading(matrix, network.sizes[bond]) for matrix in stack.matrices(batch, left)]
        stack.decompositions[key] = tuple(np.stack(part) for part in zip(*found, strict=True))
    u, s, vt = stack.decompositions[key]
    vectors = vt.swapaxes(1, 2) if is_right else u
    scaled = vectors * s[:, None, :] ** network.factors[factor].init.power
    return _laid(network, factor, _fit(scaled, 2, network.sizes[bond]), (*batch, *rows, bond))


def _leading(matrix: Array, rank: int) -> tuple[Array, Array, Array]:
    """Return the leading singular vectors and values, largest first: U (rows, k), s (k), V^T (k, columns).

    A few of a large matrix are found by Lanczos steps from a fixed vector, which is much less work.
    """
    short = min(matrix.shape)
    if short <= LARGE or rank * FEW > short:
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], vt[:rank]
    from scipy.sparse.linalg import svds  # noqa: PLC0415  (a third of a second to import; few starts need it)

    u, s, vt = svds(matrix, k=rank, v0=np.ones(short))
    order = np.argsort(-s)
    return u[:, order], s[order], vt[order]


def _tt_svd(factor: str, stack: Stack, starts: Callable[[str], Array]) -> Array:
    """Return one core of the tensor train of the weights. Its cores are the factors with this initializer, in order."""
    network = stack.network
    cores = [name for name, other in network.factors.items() if other.init.kind == "tt_svd"]
    roles = [_roles(network, name) for name in cores]
    batch = tuple(mode for mode in network.over if all(mode in sites for sites, _, _ in roles))
    outer = [(*(mode for mode in sites if mode not in batch), *weight) for sites, weight, _ in roles]
    joints = [next(bond for bond in roles[place][2] if bond in roles[place + 1][2]) for place in range(len(cores) - 1)]
    ranks = [1, *(network.sizes[bond] for bond in joints), 1]
    if stack.trains is None:
        order = [stack.modes.index(mode) for mode in (*batch, *(mode for modes in outer for mode in modes))]
        turned = np.transpose(stack.values, order)
        shape = [network.volume(modes) for modes in outer]
        made = [_tensor_train(one, ranks) for one in turned.reshape(network.volume(batch), *shape)]
        stack.trains = [np.stack([train[place] for train in made]) for place in range(len(cores))]
    place = cores.index(factor)
    around = (*joints[place - 1 : place][: place > 0], *outer[place], *joints[place : place + 1])
    return _laid(network, factor, stack.trains[place], (*batch, *around))


def _tensor_train(tensor: Array, ranks: list[int]) -> list[Array]:
    """Return the cores (rank, mode, rank) of tensorly's TT-SVD, padded with zeros to the given ranks."""
    from tensorly.decomposition import tensor_train  # noqa: PLC0415  (half a second to import; few starts need it)

    most = [min(math.prod(tensor.shape[:cut]), math.prod(tensor.shape[cut:])) for cut in range(tensor.ndim + 1)]
    cores = tensor_train(tensor, rank=[min(rank, top) for rank, top in zip(ranks, most, strict=True)])
    return [
        _fit(_fit(np.asarray(core), 0, before), 2, after)
        for core, before, after in zip(cores, ranks[:-1], ranks[1:], strict=True)
    ]


def _hosvd_core(factor: str, stack: Stack, starts: Callable[[str], Array]) -> Array:
    """Return the weights contracted with all other factors: the best core if those are orthonormal."""
    network = stack.network
    operands = [(stack.values, stack.modes)]
    others = {name: one for name, one in network.factors.items() if name != factor and not one.init.is_host}
    operands += [(starts(name), other.modes) for name, other in others.items() if not other.init.is_magnitude]
    return contract(operands, network.factors[factor].modes)


def _t_svd(factor: str, stack: Stack, starts: Callable[[str], Array]) -> Array:
    """Return one part of the t-SVD along the sites: left, right or, for a factor without weight modes, middle.

    Source: Kilmer and Martin 2011, "Factorization strategies for third-order tensors".
    """
    network = stack.network
    _, weight, bonds = _roles(network, factor)
    spectrum = np.fft.rfft(stack.matrices((), network.over)[0].reshape(-1, *network.weight_shape), axis=0)
    u, s, vh = np.linalg.svd(spectrum, full_matrices=False)
    tube, ranks = _tube(network, bonds)
    if not weight:
        middle = s[:, :, None] * np.eye(s.shape[1])
        part, modes = _fit(_fit(middle, 1, network.sizes[ranks[0]]), 2, network.sizes[ranks[1]]), (tube, *ranks)
    elif set(weight) & set(network.out_modes):
        left = u * s[:, None, :] ** network.factors[factor].init.power
        part, modes = _fit(left, 2, network.sizes[ranks[0]]), (tube, *network.out_modes, *ranks)
    else:
        right = s[:, :, None] ** network.factors[factor].init.power * vh
        part, modes = _fit(right, 1, network.sizes[ranks[0]]), (tube, *ranks, *network.in_modes)
    return _laid(network, factor, np.fft.irfft(part, n=network.sizes[tube], axis=0), modes)


def _tensor_cur(factor: str, stack: Stack, starts: Callable[[str], Array]) -> Array:
    """Return one part of the tensor CUR decomposition along the sites.

    The part is the columns, the rows or, for a factor without weight modes, the pseudo-inverse between them. The
    columns are those with the largest norms over all frequencies; the rows are those with the largest norms within
    these columns.
    """
    network = stack.network
    _, weight, bonds = _roles(network, factor)
    tube, ranks = _tube(network, bonds)
    whole = stack.matrices((), network.over)[0].reshape(-1, *network.weight_shape)
    spectrum = np.fft.fft(whole, axis=0)
    carried = {
        name: _roles(network, name) for name, other in network.factors.items() if other.init.kind == "tensor_cur"
    }
    width = next(_tube(network, b)[1][0] for _, w, b in carried.values() if set(w) & set(network.out_modes))
    height = next(_tube(network, b)[1][0] for _, w, b in carried.values() if w and not set(w) & set(network.out_modes))
    columns = _largest(np.linalg.norm(spectrum, axis=1).sum(axis=0), network.sizes[width])
    rows = _largest(np.linalg.norm(spectrum[:, :, columns], axis=2).sum(axis=0), network.sizes[height])
    if set(weight) & set(network.out_modes):
        part, modes = _fit(whole[:, :, columns], 2, network.sizes[width]), (tube, *network.out_modes, *ranks)
    elif weight:
        part, modes = _fit(whole[:, rows], 1, network.sizes[height]), (tube, *ranks, *network.in_modes)
    else:
        between = np.fft.ifft(np.linalg.pinv(spectrum[:, rows][:, :, columns]), axis=0).real
        part, modes = _fit(_fit(between, 1, network.sizes[width]), 2, network.sizes[height]), (tube, width, height)
    return _laid(network, factor, part, modes)


def _tube(network: Network, bonds: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return the bond that runs along the sites, which a frozen factor joins to them, and the other bonds."""
    joined = {mode for factor in network.factors.values() if factor.init.kind == "cyclic" for mode in factor.modes}
    (tube,) = [bond for bond in bonds if bond in joined]
    return tube, tuple(bond for bond in bonds if bond != tube)


def _largest(norms: Array, number: int) -> npt.NDArray[np.intp]:
    """Return the indices of the largest entries in rising order."""
    return np.sort(np.argsort(-norms, kind="stable")[:number])


def _fit(values: npt.NDArray[np.generic], axis: int, length: int) -> Array:
    """Return the leading part along an axis, padded with zeros to a length."""
    kept = values.take(range(min(length, values.shape[axis])), axis)
    missing = [(0, length - kept.shape[axis] if place == axis else 0) for place in range(kept.ndim)]
    padded: Array = np.pad(kept, missing)
    return padded
