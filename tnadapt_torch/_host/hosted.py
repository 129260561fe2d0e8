"""The host's own weights as factors: read at each call, or decomposed once."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tnadapt import Adapter, Site, SiteError
from tnadapt.binding import HOST_PARTS, HostReader, host_entry, read_hosts, start_values
from tnadapt_torch._host.quantized import read_dense
from tnadapt_torch._host.weight import HostWeights, Weight
from tnadapt_torch._sharded import whole

__all__: list[str] = []

PLAIN = (Tensor, nn.Parameter)
SAMPLES = 16  # singular vectors of each weight that are compared
CLOSE = 0.01  # relative; bfloat16 rounds by 0.002

Array = npt.NDArray[np.floating[Any]]


class Merging(Protocol):
    """The attributes of an adapter that say whether updates are in the weights."""

    @property
    def merged(self) -> object:
        """What was merged, or None."""
        ...

    @property
    def originals(self) -> Mapping[str, Tensor]:
        """Under PEFT, the values from before all merges of the weights that were merged into, by path."""
        ...


class Hosted:
    """A reference to a site's weight, without updates that are folded into it, or to the pattern of its nonzeros."""

    def __init__(
        self, owner: Merging, weight: Weight, site: Site, shape: tuple[int, ...], *, is_mask: bool = False
    ) -> None:
        """Store the adapter, the weight, and the shape in which the site's part of it is read."""
        self.owner, self.weight, self.is_mask = owner, weight, is_mask
        self.rectangle, self.shape = site.rectangle, shape
        self.is_plain = not weight.storage

    def read(self) -> Tensor:
        """Return the site's weight or its pattern. A weight that is trained gets the gradient of the update as well.

        Raise SiteError while the weight contains the update itself or, under PEFT, that of any adapter.
        """
        is_own, others = self.owner.merged is not None, self.owner.originals
        # An empty table is not asked for the path: compiled code would be that of this path alone.
        if is_own or (others and self.weight.path in others):
            path = self.weight.path
            raise SiteError(
                f"{path}: expected the host's own weight, which is a factor of the adapter, got one with "
                f"{'the' if is_own else 'an'} update merged into it.\n"
                f"Call {'unmerge' if is_own else 'unmerge_adapter'}() first."
            )
        stored = self.weight.tensor if self.is_plain and self._stays_plain() else self._dequantize()
        read = self.weight.unlay(whole(stored))[self.rectangle].reshape(self.shape)
        return (read != 0).to(read.dtype) if self.is_mask else read

    def _stays_plain(self) -> bool:
        """Return whether the weight was not quantized since the attach."""
        return type(self.weight.tensor) in PLAIN or not self.weight.storage

    def _dequantize(self) -> Tensor:
        with torch.no_grad():
            return read_dense(self.weight.path, self.weight.module, self.weight.name, self.weight.held)


class HostEntries(Mapping[str, npt.ArrayLike]):
    """An adapter's params, with the entries that are the host's weights; each of those is read when it is looked up."""

    def __init__(
        self,
        adapter: Adapter,
        weights: Mapping[str, Weight],
        params: Mapping[str, npt.ArrayLike] | None = None,
        originals: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Store the adapter, the weights by path, the other params, and the values from before the adapter's merge."""
        self.adapter, self.params = adapter, params or {}
        self.reader = HostReader(adapter, HostWeights(weights, originals))

    def __getitem__(self, name: str) -> npt.ArrayLike:
        return self.params[name] if name in self.params else self.reader.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.params or name in self.adapter.hosts  # without reading a weight

    def __iter__(self) -> Iterator[str]:
        return iter((*self.params, *self.adapter.hosts))

    def __len__(self) -> int:
        return len(self.params) + len(self.adapter.hosts)


def start_params(adapter: Adapter, weights: Mapping[str, Weight]) -> dict[str, Tensor]:
    """Return the starting values of an adapter, with the parts of the SVDs of the host's weights that are factors."""
    drawn = start_values(adapter, HostWeights(weights))
    return {name: torch.from_numpy(value).float() for name, value in drawn.items()} | host_parts(adapter, weights)


def host_parts(adapter: Adapter, weights: Mapping[str, Weight]) -> dict[str, Tensor]:
    """Return the parts of the SVDs of the host's weights that are factors, by their names in params."""
    found = {}
    shapes: dict[str, tuple[str, ...]] = {one.init.kind: one.modes for one in adapter.spec.hosts.values()}
    for name, value in read_hosts(adapter, HostWeights(weights), HOST_PARTS).items():
        site, kind = adapter.hosts[name]
        sizes = adapter.find(site)[0].network.sizes
        part = torch.from_numpy(value.reshape([sizes[mode] for mode in shapes[kind]]))
        found[name] = part.to(weights[site.weight].like.dtype)
    return found


def check_parts(adapter: Adapter, weights: Mapping[str, npt.ArrayLike], parts: Mapping[str, npt.ArrayLike]) -> None:
    """Raise SiteError if these are no longer parts of the SVDs of the host's weights, up to the rounding of a dtype.

    Some singular vectors of each weight are tried: at most two products of the weight with 16 vectors.
    """
    for site in adapter.sites if parts else ():
        weight = np.asarray(weights[site.weight], dtype=np.float64)[site.rectangle].reshape(site.shape[0], -1)
        found = [parts.get(host_entry(site, kind)) for kind in HOST_PARTS]
        left, values, right = (None if part is None else np.asarray(part, dtype=np.float64) for part in found)
        left = None if left is None else left.reshape(len(weight), -1)
        right = None if right is None else right.reshape(-1, weight.shape[1])
        if not _is_decomposed(weight, left, values, right):
            raise SiteError(
                f"{site.path}: expected the weight that the adapter was attached to, since its SVD is a factor, got "
                "another.\nA file does not store the SVD, so nothing was written. Put the weight back, or attach again "
                "after the change."
            )


def _is_decomposed(weight: Array, left: Array | None, values: Array | None, right: Array | None) -> bool:
    """Return whether U^T W V is diagonal and falls, in some of its rows; or W's Gram matrix, if U or V is not given."""
    at = np.unique(np.linspace(0, min(weight.shape) - 1, SAMPLES).astype(int))
    if left is not None:
        rows = left.T[at] @ weight
        core = rows @ right.T if right is not None else rows @ weight.T @ left
    elif right is not None:
        core = right[at] @ weight.T @ weight @ right.T
    else:
        total = np.linalg.norm(weight)
        return values is None or bool(abs(np.linalg.norm(values) - total) <= CLOSE * total)
    wanted, diagonal = np.zeros_like(core), np.sort(abs(core[np.arange(len(at)), at]))[::-1]
    power = 1 if left is not None and right is not None else 2
    wanted[np.arange(len(at)), at] = diagonal if values is None else values[at] ** power
    return bool(np.linalg.norm(core - wanted) <= CLOSE * np.linalg.norm(core))
