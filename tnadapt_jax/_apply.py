"""Apply an adapter at one site, or compute its dense update there, as pure functions of its params."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from tnadapt import Adapter, Site, SiteError
from tnadapt.binding import Address, Network, Part, expect_adapter, mistake, told
from tnadapt_jax._explicit import OutSharding, brought_to, placed, spec_of
from tnadapt_jax._lower import apply_network, make_delta, wide_of
from tnadapt_jax._magnitude import Rows, product_of, scale_delta, scale_output
from tnadapt_jax._maps import map_factor
from tnadapt_jax._params import Params, check_size, find_array
from tnadapt_jax._stack import cut

__all__ = ["apply", "delta"]


@dataclass(frozen=True)
class Parts:
    """The factors that one site reads, in the order of its network's nodes, and what a magnitude reads."""

    network: Network
    factors: Sequence[Array]
    rows: Rows | None = None


def apply(
    adapter: Adapter,
    params: Params,
    site: Site | str,
    x: Array,
    *,
    product: Array | None = None,
    out_sharding: OutSharding = None,
) -> Array:
    """Return what the update adds to the output of one site. Frozen factors get no gradient.

    Args:
        adapter: a spec bound to sites.
        params: the params of the adapter, as `init` returns them.
        site: the site or its path, or the path of a weight, for the sum of what all of its sites add.
        x: the input of the site, of shape (..., in axes of the weight).
        product: x times the host's weight, of shape (..., out), which the layer makes anyway. A magnitude and terms
            that begin with the host's weight read it, and make it again if it is not given.
        out_sharding: the sharding of the answer, as for `jax.numpy.einsum`. Under a mesh of explicit axes it is by
            default that of the product, if it is given, or else that of x's leading axes and of the factor with the
            out axis; a sum over a split axis is not split. Under other meshes it is a constraint, and none by default.

    Returns:
        An array of shape (..., out), in the dtype of x.

    Raises:
        SiteError: for a site, params, a product or an x that do not fit the adapter, or for a weight whose sites belong
            to several tasks. This is checked before anything is traced.
    """
    expect_adapter(adapter, "apply")
    if isinstance(site, str) and (parts := adapter.parts(site)):
        return placed(_apply_blocks(adapter, params, parts, x, product), out_sharding)
    address = adapter.address(site)
    check_x(address.site.path, address.group.network, x)
    check_product(address.site, x, product)
    return placed(apply_parts(parts_at(adapter, params, address), x, product), out_sharding)


def delta(adapter: Adapter, params: Params, site: Site | str) -> Array:
    """Return the dense update of one site.

    Args:
        adapter: a spec bound to sites.
        params: the params of the adapter, as `init` returns them.
        site: the site or its path, or the path of a weight, for the update of that whole weight.

    Returns:
        An array of the site's shape (out axis first), in float32 or wider.

    Raises:
        SiteError: for a site or params that do not fit the adapter, or for a weight whose sites belong to several
            tasks.
    """
    expect_adapter(adapter, "delta")
    if isinstance(site, str) and (blocks := adapter.parts(site)):
        return put_together([(block, delta(adapter, params, block)) for block in blocks])
    parts = parts_at(adapter, params, adapter.address(site))
    return delta_of_parts(parts, wide_of(*parts.factors))


def put_together(updates: Sequence[tuple[Site, Array]]) -> Array:
    """Return the update of one weight from the updates of its blocks; 0 outside the blocks."""
    whole = jnp.zeros(updates[0][0].weight_shape, updates[0][1].dtype)
    for site, update in updates:
        whole = whole.at[site.rectangle].set(update)
    return whole


def _apply_blocks(adapter: Adapter, params: Params, blocks: Sequence[Site], x: Array, product: Array | None) -> Array:
    """Return what the blocks of one weight add, each to its rows of the output from its columns of x."""
    path, shape = blocks[0].weight, blocks[0].weight_shape
    if len(shape) != 2:  # noqa: PLR2004
        raise SiteError(
            f"{path}: expected a weight of 2 axes, got shape {shape}.\nIts blocks share no x: apply each site."
        )
    if jnp.shape(x)[-1:] != shape[1:]:
        raise SiteError(f"{path}: expected x to end in the in axes {shape[1:]}, got shape {jnp.shape(x)}.")
    total = jnp.zeros((*jnp.shape(x)[:-1], shape[0]), x.dtype)
    for block in blocks:
        rows, columns = block.rectangle
        is_whole = columns == slice(0, shape[1])  # else the rows of the product belong to other columns as well
        own = product[..., rows] if product is not None and is_whole else None
        total = total.at[..., rows].add(apply(adapter, params, block, x[..., columns], product=own))
    return total


def parts_at(adapter: Adapter, params: Params, address: Address) -> Parts:
    """Return the factors of one site. Frozen factors get no gradient, as the plan assumes.

    Raises SiteError for params that do not fit the adapter.
    """
    check_size(adapter, params)
    network, parts = address.group.network, address.parts
    found = {
        name: find_array(adapter, params, part.name) for name, part in parts.items()
    }  # check all before slicing any

    def local(part: Part, value: Array) -> Array:
        is_trained = part.factor.trainable and not part.at_start
        if part.factor.init.is_host:
            return lax.stop_gradient(value.reshape([network.sizes[mode] for mode in part.factor.modes]))
        return map_factor(part.factor.map, cut(value if is_trained else lax.stop_gradient(value), part.cut))

    rows = None
    if address.magnitude is not None:
        lengths, weight = address.magnitude.lengths, address.magnitude.weight
        read = [find_array(adapter, params, part.name) for part in (lengths, weight)]
        rows = Rows(cut(read[0], lengths.cut), lax.stop_gradient(read[1]))
    return Parts(network, [local(parts[name], value) for name, value in found.items()], rows)


def apply_parts(parts: Parts, x: Array, product: Array | None = None) -> Array:
    """Return the scaled update of x by the factors of one site, in the dtype of x."""
    given = None if product is None else cast([product], x.dtype)[0]
    update = apply_network(parts.network, cast(parts.factors, x.dtype), x, product=given)
    if product is not None:
        update = brought_to(update, spec_of(product))
    if parts.rows is None:
        return update
    made = brought_to(product_of(parts.rows, x), spec_of(update)) if product is None else product
    return scale_output(parts.network, parts.factors, parts.rows, made, update)


def delta_of_parts(parts: Parts, dtype: DTypeLike) -> Array:
    """Return the scaled dense update by the factors of one site, in this dtype, at full precision on every device."""
    update = make_delta(parts.network, cast(parts.factors, dtype), precision=lax.Precision.HIGHEST)
    return update if parts.rows is None else scale_delta(parts.rows, update)


def cast(values: Sequence[Array], dtype: DTypeLike) -> list[Array]:
    """Convert the values to this dtype explicitly, as strict dtype promotion requires."""
    return [lax.convert_element_type(value, dtype) for value in values]


def check_product(site: Site, x: Array, product: Array | None) -> None:
    """Raise SiteError unless the product of x and the weight, if given, has its shape."""
    lead = jnp.shape(x)[: jnp.ndim(x) - len(site.shape) + 1]
    if product is not None and jnp.shape(product) != (*lead, site.shape[0]):
        raise SiteError(
            f"{site.path}: expected a product of shape {(*lead, site.shape[0])}, got {jnp.shape(product)}.\n"
            "Pass x times the host's weight, without the bias."
        )


def check_x(path: str, network: Network, x: Array) -> None:
    """Raise SiteError unless x is an array of a float dtype that ends in the in axes of the weight."""
    if not hasattr(x, "dtype") and not isinstance(x, int | float):
        raise mistake(SiteError, path, "an array as x", told(x), "Write jnp.asarray(x).")
    inner = network.weight_shape[1:]
    shape, dtype = jnp.shape(x), jnp.result_type(x)
    if shape[max(len(shape) - len(inner), 0) :] != inner:
        raise SiteError(f"{path}: expected x to end in the in axes {inner}, got shape {shape}.")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise SiteError(f"{path}: expected x of a float dtype, got {dtype}.")
