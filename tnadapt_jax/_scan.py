"""Use an adapter in lax.scan: arrays that all layers share are closed over, arrays per layer are scanned."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tnadapt import Adapter, Site, SiteError
from tnadapt.binding import Address, Network, Part, expect_adapter
from tnadapt_jax._apply import Parts, apply_parts, check_product, check_x
from tnadapt_jax._explicit import OutSharding, placed
from tnadapt_jax._magnitude import Rows
from tnadapt_jax._maps import map_factor
from tnadapt_jax._params import Params, check_params, check_shape, find_array
from tnadapt_jax._stack import cut, stack_parts

__all__ = ["apply_in_layer", "scan_split"]

Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Source:
    """Where one kind reads one factor: its part in each layer, and the shape of the params that parts are cut from."""

    parts: tuple[Part, ...]
    kind: str
    whole: tuple[int, ...]

    @cached_property
    def is_shared(self) -> bool:
        """Whether every layer reads the same values."""
        return self._is_one and not self._moving

    @cached_property
    def over(self) -> int | None:
        """The axis that the layers walk along from end to end, so that all kinds can scan over it; None if none is."""
        if not self._is_one or len(self._moving) != 1:
            return None
        (axis,) = self._moving
        rows = range(self.whole[axis])  # of all kinds, where each has its own
        return axis if [part.cut[axis] for part in self.parts] == list(rows) else None

    @property
    def key(self) -> str:
        """The name in `shared` or `per_layer`; the same for kinds that read the same values."""
        first = self.parts[0]
        is_own = not self.is_shared and self.over is None and first.index
        return f"{first.name}@{self.kind}" if is_own else first.name

    @property
    def left(self) -> tuple[int | slice, ...]:
        """What the body of the scan cuts: all of a shared array, a row of a whole one, nothing of a stack of parts."""
        cut = self.parts[0].cut
        if self.is_shared or self.over is not None:
            return tuple(at for axis, at in enumerate(cut) if axis != self.over)
        return tuple(at for at in cut if isinstance(at, slice))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array in the body of the scan."""
        if self.is_shared or self.over is not None:
            return tuple(size for axis, size in enumerate(self.whole) if axis != self.over)
        return tuple(at.stop for at in self.left if isinstance(at, slice))

    def stacked(self, read: Callable[[Part], Array]) -> Array:
        """Return the array with the layers in front: a whole one, or a stack of the parts that the kind reads."""
        if self.over is not None:
            return jnp.moveaxis(read(self.parts[0]), self.over, 0)
        return stack_parts(np.array(self.parts, dtype=object), read)[0]

    @property
    def _is_one(self) -> bool:
        return len({part.name for part in self.parts}) == 1

    @property
    def _moving(self) -> list[int]:
        """The axes along which the place differs between layers."""
        first = self.parts[0].cut
        return [axis for axis, at in enumerate(first) if any(part.cut[axis] != at for part in self.parts)]


@dataclass(frozen=True)
class Kind:
    """One kind of weight in every layer: its first site, its network, and where it reads its factors."""

    site: Site
    network: Network
    sources: tuple[Source, ...]
    rows: tuple[Source, ...] = ()

    @property
    def every(self) -> tuple[Source, ...]:
        """The sources of the nodes, then those of a magnitude: its lengths and the host's weight."""
        return self.sources + self.rows


def scan_split(adapter: Adapter, params: Params) -> tuple[dict[str, Array], dict[str, Array]]:
    """Split the params for lax.scan over layers. Gradients with respect to `params` pass through the split.

    Args:
        adapter: a spec bound to a full grid of layers and kinds, with one shape per kind.
        params: the params of the adapter.

    Returns:
        (shared, per_layer): close over the first, which holds the arrays common to all layers once; scan over the
        second, whose arrays have the layer axis in front.

    Raises:
        SiteError: for params that do not fit the adapter, or for sites that are not such a grid.
    """
    expect_adapter(adapter, "scan_split")
    check_params(adapter, params)
    shared: dict[str, Array] = {}
    per_layer: dict[str, Array] = {}
    for kind in _kinds(adapter).values():
        for source in kind.every:
            read = partial(_read, adapter, params, source.whole)
            if source.is_shared:
                shared.setdefault(source.key, read(source.parts[0]))
            elif source.key not in per_layer:
                per_layer[source.key] = source.stacked(read)
    return shared, per_layer


def apply_in_layer(
    adapter: Adapter,
    shared: Arrays,
    layer: Arrays,
    kind: str,
    x: Array,
    *,
    product: Array | None = None,
    out_sharding: OutSharding = None,
) -> Array:
    """Return what the update adds to the output of one kind of weight, in the body of a scan over layers.

    Args:
        adapter: a spec bound to sites.
        shared: the arrays that all layers share, from `scan_split`.
        layer: the scan's slice of `per_layer`, from `scan_split`.
        kind: the kind of the weight.
        x: the input of the weight, of shape (..., in axes).
        product: x times the host's weight, as for `apply`.
        out_sharding: the sharding of the answer, as for `apply`.

    Returns:
        An array of shape (..., out), in the dtype of x.

    Raises:
        SiteError: for a kind that the adapter does not have, arrays of another split, or an x or a product that does
            not fit.
    """
    expect_adapter(adapter, "apply_in_layer")
    kinds = _kinds(adapter)
    if kind not in kinds:
        raise SiteError(f"kind: expected a kind of this adapter, got {kind!r}.\nIts kinds are {', '.join(kinds)}.")
    site = kinds[kind].site
    check_x(site.path, kinds[kind].network, x)
    check_product(site, x, product)
    return placed(apply_parts(parts_in_layer(adapter, shared, layer, kind), x, product), out_sharding)


def parts_in_layer(adapter: Adapter, shared: Arrays, layer: Arrays, kind: str) -> Parts:
    """Return what one kind of weight reads in the body of a scan. Raises SiteError for arrays of another split."""
    found = _kinds(adapter)[kind]
    factors = [map_factor(one.parts[0].factor.map, _held(one, shared, layer)) for one in found.sources]
    rows = None
    if found.rows:
        lengths, weight = (_held(source, shared, layer) for source in found.rows)
        rows = Rows(lengths, weight.reshape(found.site.shape))
    return Parts(found.network, factors, rows)


@lru_cache(maxsize=64)
def _kinds(adapter: Adapter) -> dict[str, Kind]:
    """Return every kind with its sources in all layers. Raises SiteError unless the sites form a full grid."""
    places: dict[str, dict[int | str, Address]] = {}
    for site in (site for group in adapter.groups for site in group.sites):
        kind, layer = str(site.value("kind")), site.value("layer")
        if layer in places.setdefault(kind, {}):
            raise SiteError(f"{site.path}: expected one weight per kind and layer for a scan, got two.")
        places[kind][layer] = adapter.address(site)
    layers = sorted({layer for some in places.values() for layer in some}, key=lambda at: (isinstance(at, str), at))
    return {kind: _kind(adapter, kind, some, layers) for kind, some in places.items()}


def _kind(adapter: Adapter, kind: str, found: Mapping[int | str, Address], layers: Sequence[int | str]) -> Kind:
    if missing := [layer for layer in layers if layer not in found]:
        raise SiteError(
            f"kind {kind!r}: expected it in every layer for a scan, got none in layer {missing[0]}.\n"
            f"The layers are {', '.join(map(str, layers))}."
        )
    stack = [found[layer] for layer in layers]
    network, site = stack[0].group.network, stack[0].site
    for other in (address.site for address in stack):
        if other.shape != site.shape:
            raise SiteError(
                f"{other.path}: expected one shape per kind for a scan, that of {site.path}, {site.shape}, "
                f"got {other.shape}."
            )
    read = [[address.parts[node] for address in stack] for node in network.nodes]
    magnitudes = [address.magnitude for address in stack if address.magnitude is not None]
    rows = [[each.lengths for each in magnitudes], [each.weight for each in magnitudes]] if magnitudes else []
    nodes, further = (tuple(_source(adapter, network, kind, parts) for parts in some) for some in (read, rows))
    return Kind(site, network, nodes, further)


def _source(adapter: Adapter, network: Network, kind: str, parts: Sequence[Part]) -> Source:
    """Return where a kind reads one factor, from its part in each layer."""
    first = parts[0]
    of_host = tuple(network.sizes[mode] for mode in first.factor.modes) if first.factor.init.is_host else None
    return Source(tuple(parts), kind, of_host or adapter.slots[first.source].shape)


def _read(adapter: Adapter, params: Params, shape: tuple[int, ...], part: Part) -> Array:
    """Return the array of the params that a part is cut from. Frozen factors and starts get no gradient."""
    value = find_array(adapter, params, part.name)
    return (value if part.name in params["trainable"] else lax.stop_gradient(value)).reshape(shape)


def _held(source: Source, shared: Arrays, layer: Arrays) -> Array:
    """Return the values that one layer's weight reads, before a map."""
    tree, held, key = ("shared", shared, source.key) if source.is_shared else ("layer", layer, source.key)
    if key not in held:
        raise SiteError(
            f"{tree}: expected the array {key!r}, got none.\n"
            f"It holds {', '.join(held) or 'nothing'}.\n"
            "Pass the result of scan_split for this adapter: all of `shared`, and the scan's slice of `per_layer`."
        )
    check_shape(tree, key, held[key], source.shape)
    return cut(held[key], source.left)
