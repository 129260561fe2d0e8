"""What an adapter does at one site, as pure functions of its params. Checked once, before anything is traced."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from tnadapt import Adapter, Site, SiteError
from tnadapt.binding import Address, Network, Part, expect_adapter, mistake, told
from tnadapt_jax._lower import apply_network, make_delta
from tnadapt_jax._maps import map_factor
from tnadapt_jax._params import Params, check_size, find_array

__all__ = ["apply", "delta"]


@dataclass(frozen=True)
class Parts:
    """The factors that one site reads, in the order of its network; for a centered network their starts too."""

    network: Network
    factors: Sequence[Array]
    starts: Sequence[Array]


def apply(adapter: Adapter, params: Params, site: Site | str, x: Array) -> Array:
    """What the update adds to the output of one site: x (..., in axes of the weight) -> (..., out), in x's dtype.

    The path of a weight that several sites lie in asks for what all of them add. Frozen factors get no gradient. Raises
    SiteError for a site, params or an x that are not this adapter's, or for a weight whose sites serve several tasks.
    """
    expect_adapter(adapter, "apply")
    if isinstance(site, str) and (parts := adapter.parts(site)):
        return _apply_blocks(adapter, params, parts, x)
    address = adapter.address(site)
    check_x(address.site.path, address.group.network, x)
    return apply_parts(parts_at(adapter, params, address), x)


def delta(adapter: Adapter, params: Params, site: Site | str) -> Array:
    """The dense update of one site, of the site's shape (out axis first), in float32 or better.

    The path of a weight that several sites lie in asks for all of that weight's update. Raises SiteError for a site or
    params that are not this adapter's, or a weight whose sites serve several tasks.
    """
    expect_adapter(adapter, "delta")
    if isinstance(site, str) and (blocks := adapter.parts(site)):
        return put_together([(block, delta(adapter, params, block)) for block in blocks])
    parts = parts_at(adapter, params, adapter.address(site))
    return delta_of_parts(parts, wide_of(*parts.factors))


def put_together(updates: Sequence[tuple[Site, Array]]) -> Array:
    """The update of one weight from those of the blocks in it; 0 where none lies."""
    whole = jnp.zeros(updates[0][0].weight_shape, updates[0][1].dtype)
    for site, update in updates:
        whole = whole.at[site.rectangle].set(update)
    return whole


def _apply_blocks(adapter: Adapter, params: Params, blocks: Sequence[Site], x: Array) -> Array:
    """What the blocks of one weight add, each to its rows of the output from its columns of x."""
    path, shape = blocks[0].weight, blocks[0].weight_shape
    if len(shape) != 2:  # noqa: PLR2004
        raise SiteError(f"{path}: is of shape {shape}, so that its blocks have no one x.\nApply its sites one by one.")
    if jnp.shape(x)[-1:] != shape[1:]:
        raise SiteError(f"{path}: x must end in the in axes {shape[1:]}.\nHowever, it has shape {jnp.shape(x)}.")
    total = jnp.zeros((*jnp.shape(x)[:-1], shape[0]), x.dtype)
    for block in blocks:
        rows, columns = block.rectangle
        total = total.at[..., rows].add(apply(adapter, params, block, x[..., columns]))
    return total


def parts_at(adapter: Adapter, params: Params, address: Address) -> Parts:
    """Read the factors of one site; frozen ones take no gradient, since the plan was made so.

    Raises SiteError for params that are not this adapter's.
    """
    check_size(adapter, params)
    network, parts = address.group.network, address.parts
    found = {name: find_array(adapter, params, part.name) for name, part in parts.items()}  # all, before one is cut
    starts = {name: find_array(adapter, params, part.start) for name, part in parts.items() if network.centered}

    def local(part: Part, value: Array) -> Array:
        return map_factor(part.factor.map, cut(value, part.cut))

    factors = [
        local(parts[name], value if parts[name].factor.trainable else lax.stop_gradient(value))
        for name, value in found.items()
    ]
    return Parts(network, factors, [local(parts[name], lax.stop_gradient(value)) for name, value in starts.items()])


def cut(value: Array, place: Sequence[int | slice]) -> Array:
    """Index an array by one place or one leading part along each axis; a slice of it, whose gradient is no scatter."""
    stops = [at.stop if isinstance(at, slice) else at + 1 for at in place]
    starts = [0 if isinstance(at, slice) else at for at in place]
    if tuple(stops) != value.shape or any(starts):
        value = lax.slice(value, starts, stops)
    return lax.squeeze(value, [axis for axis, at in enumerate(place) if isinstance(at, int)])


def apply_parts(parts: Parts, x: Array) -> Array:
    """The scaled update of x by the factors of one site, in x's dtype."""
    update = apply_network(parts.network, cast(parts.factors, x.dtype), x)
    if not parts.network.centered:
        return update
    return update - apply_network(parts.network, cast(parts.starts, x.dtype), x)


def wide_of(*values: Array) -> DTypeLike:
    """float64 where a value is that, else float32: what updates and merged weights are made in."""
    is_double = any(jnp.result_type(value) == np.float64 for value in values)
    return np.dtype(np.float64 if is_double else np.float32)


def delta_of_parts(parts: Parts, dtype: DTypeLike) -> Array:
    """The scaled dense update by the factors of one site, in this dtype, at full precision on every device."""
    update = make_delta(parts.network, cast(parts.factors, dtype), precision=lax.Precision.HIGHEST)
    if not parts.network.centered:
        return update
    return update - make_delta(parts.network, cast(parts.starts, dtype), precision=lax.Precision.HIGHEST)


def cast(values: Sequence[Array], dtype: DTypeLike) -> list[Array]:
    """The values in this dtype, each side of strict promotion."""
    return [lax.convert_element_type(value, dtype) for value in values]


def check_x(path: str, network: Network, x: Array) -> None:
    """Raises SiteError where x does not end in the in axes of the weight, or is not of a float dtype."""
    if not hasattr(x, "dtype") and not isinstance(x, int | float):
        raise mistake(SiteError, path, "an array as x", told(x), "Write jnp.asarray(x).")
    inner = network.weight_shape[1:]
    shape, dtype = jnp.shape(x), jnp.result_type(x)
    if shape[max(len(shape) - len(inner), 0) :] != inner:
        raise SiteError(f"{path}: x must end in the in axes {inner}.\nHowever, it has shape {shape}.")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise SiteError(f"{path}: x must be of a float dtype.\nHowever, it is of {dtype}.")
