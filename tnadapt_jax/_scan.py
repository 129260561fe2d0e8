"""Use an adapter in lax.scan: arrays that all layers share are closed over, arrays per layer are scanned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import jax.numpy as jnp
from jax import Array, lax

from tnadapt import Adapter, Site, SiteError
from tnadapt.binding import Address, Factor, Network, Part, expect_adapter
from tnadapt_jax._apply import Parts, apply_parts, check_x
from tnadapt_jax._magnitude import Rows
from tnadapt_jax._maps import map_factor
from tnadapt_jax._params import Params, check_params, check_shape, find_array
from tnadapt_jax._stack import cut, take_rows

__all__ = ["apply_in_layer", "scan_split"]

Arrays = Mapping[str, Array]
Index = Mapping[str, int]


@dataclass(frozen=True)
class Source:
    """Where one kind reads one factor: the param and the index along its site modes, per layer.

    `whole` is the shape of that param; `local` is the shape of the part that one site reads.
    """

    factor: Factor
    names: tuple[str, ...]
    places: tuple[Index, ...]
    kind: str
    whole: tuple[int, ...]
    local: tuple[int, ...]

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes of the param."""
        return self.factor.held

    @property
    def is_shared(self) -> bool:
        """Whether every layer reads the same values."""
        return len({*self.names}) == 1 and not self.moving

    @property
    def moving(self) -> tuple[str, ...]:
        """The site modes whose index differs between layers."""
        return tuple(mode for mode in self.places[0] if len({place[mode] for place in self.places}) > 1)

    @property
    def is_whole(self) -> bool:
        """Whether the layers read one param in the order of one of its axes, so that all kinds can scan over it."""
        if len({*self.names}) > 1 or len(self.moving) != 1:
            return False
        rows = self.whole[self.modes.index(self.moving[0])]  # of all kinds, where each has its own
        return [place[self.moving[0]] for place in self.places] == list(range(rows))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array in the body of the scan."""
        if self.is_shared:
            return self.whole
        if self.is_whole:
            return tuple(s for mode, s in zip(self.modes, self.whole, strict=True) if mode != self.moving[0])
        return self.local

    @property
    def key(self) -> str:
        """The name in `shared` or `per_layer`; the same for kinds that read the same values."""
        own = not (self.is_shared or self.is_whole) and self.places[0]
        return f"{self.names[0]}@{self.kind}" if own else self.names[0]


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
            arrays = {name: _read(adapter, params, name).reshape(source.whole) for name in source.names}
            if source.is_shared:
                shared.setdefault(source.key, arrays[source.names[0]])
            elif source.key not in per_layer:
                per_layer[source.key] = _stacked(kind.network, source, arrays)
    return shared, per_layer


def apply_in_layer(adapter: Adapter, shared: Arrays, layer: Arrays, kind: str, x: Array) -> Array:
    """Return what the update adds to the output of one kind of weight, in the body of a scan over layers.

    Args:
        adapter: a spec bound to sites.
        shared: the arrays that all layers share, from `scan_split`.
        layer: the scan's slice of `per_layer`, from `scan_split`.
        kind: the kind of the weight.
        x: the input of the weight, of shape (..., in axes).

    Returns:
        An array of shape (..., out), in the dtype of x.

    Raises:
        SiteError: for a kind that the adapter does not have, arrays of another split, or an x that does not fit.
    """
    expect_adapter(adapter, "apply_in_layer")
    kinds = _kinds(adapter)
    if kind not in kinds:
        raise SiteError(f"kind: expected a kind of this adapter, got {kind!r}.\nIts kinds are {', '.join(kinds)}.")
    network, found = kinds[kind].network, kinds[kind]
    check_x(found.site.path, network, x)
    factors = [_in_body(network, source, shared, layer) for source in found.sources]
    rows = None
    if found.rows:
        lengths, weight = (_in_body(network, source, shared, layer) for source in found.rows)
        rows = Rows(lengths, weight.reshape(found.site.shape))
    return apply_parts(Parts(network, factors, rows), x)


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
    names, places = tuple(part.name for part in parts), tuple(part.index for part in parts)
    local = tuple(at.stop for at in parts[0].cut if isinstance(at, slice))
    sizes, is_host = [network.sizes[mode] for mode in parts[0].factor.modes], parts[0].factor.init.is_host
    whole = tuple(sizes) if is_host else adapter.slots[parts[0].source].shape
    return Source(parts[0].factor, names, places, kind, whole, local)


def _read(adapter: Adapter, params: Params, name: str) -> Array:
    """Return one array of the params. Frozen factors and starts get no gradient."""
    value = find_array(adapter, params, name)
    return value if name in params["trainable"] else lax.stop_gradient(value)


def _stacked(network: Network, source: Source, arrays: Arrays) -> Array:
    """Return a factor with the layer axis in front: a transposed param, or a stack of the parts that the kind reads."""
    modes, first = source.modes, arrays[source.names[0]]
    if source.is_whole:
        return jnp.moveaxis(first, modes.index(source.moving[0]), 0)
    if len(arrays) == 1 and len(source.moving) == 1:
        mode = source.moving[0]
        rows = [place[mode] for place in source.places]
        part = take_rows(first, rows, modes.index(mode))
        rest = {name: at for name, at in source.places[0].items() if name != mode}
        sizes = dict(network.sizes) | {mode: len(rows)}
        left = [name for name in modes if name not in rest]
        return jnp.moveaxis(_cut(part, modes, sizes, rest), left.index(mode), 0)
    each = zip(source.names, source.places, strict=True)
    return jnp.stack([_cut(arrays[name], modes, network.sizes, place) for name, place in each])


def _in_body(network: Network, source: Source, shared: Arrays, layer: Arrays) -> Array:
    """Return the factor that one layer's weight reads."""
    return map_factor(source.factor.map, _held_in_body(network, source, shared, layer))


def _held_in_body(network: Network, source: Source, shared: Arrays, layer: Arrays) -> Array:
    held, key = (shared if source.is_shared else layer), source.key
    if key not in held:
        raise SiteError(
            f"{'shared' if source.is_shared else 'layer'}: expected the array {key!r}, got none.\n"
            f"It holds {', '.join(held) or 'nothing'}.\n"
            "Pass the result of scan_split for this adapter: all of `shared`, and the scan's slice of `per_layer`."
        )
    check_shape("shared" if source.is_shared else "layer", key, held[key], source.shape)
    if source.is_shared:
        return _cut(held[key], source.modes, network.sizes, source.places[0])
    if source.is_whole:
        modes = tuple(mode for mode in source.modes if mode != source.moving[0])
        return _cut(held[key], modes, network.sizes, {m: at for m, at in source.places[0].items() if m in modes})
    return held[key]


def _cut(value: Array, modes: Sequence[str], sizes: Mapping[str, int], index: Index) -> Array:
    """Select one index along each mode in `index`, and the leading part along every other mode."""
    return cut(value, [index.get(mode, slice(sizes[mode])) for mode in modes])
