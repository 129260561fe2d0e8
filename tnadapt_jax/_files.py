"""Save and load adapters, in the same file format as the other frameworks."""

import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array
from jax.typing import ArrayLike, DTypeLike

import tnadapt
from tnadapt import Adapter, FormatError
from tnadapt.binding import (
    answers,
    check_fingerprint,
    expect_adapter,
    expect_path,
    host_entry,
    params_to_store,
    read_checkpoint,
    read_hosts,
)
from tnadapt_jax._params import Params, check_params, tree_of

__all__ = ["load", "save"]


@answers(FormatError)
def save(
    adapter: Adapter, params: Params, path: str | os.PathLike[str], *, extra: Mapping[str, ArrayLike] | None = None
) -> None:
    """Save an adapter to a file.

    bfloat16 is stored as float32. A frozen factor is stored only if its values are no longer those of the seed, up to
    rounding in its dtype.

    Args:
        adapter: a spec bound to sites.
        params: the params of the adapter.
        path: the file to write.
        extra: arrays of the host that were trained together with the adapter, by name.

    Raises:
        SiteError: for params that do not fit the adapter.
        FormatError: for values that a file cannot hold.
    """
    expect_adapter(adapter, "save", FormatError)
    expect_path(path, "save", FormatError)
    check_params(adapter, params)
    both = dict(params["trainable"]) | dict(params["frozen"])
    values = {name: _numpy(value) for name, value in both.items()}
    own = {name: value for name, value in values.items() if name not in adapter.hosts}
    kept = params_to_store(adapter, own, {name: both[name].dtype.name for name in own})
    hosts = {name: values[name] for name in adapter.hosts}
    tnadapt.save(adapter, {**kept, **hosts}, path, extra={name: _numpy(value) for name, value in (extra or {}).items()})


@answers(FormatError)
def load(
    path: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    draw_limit: int | None = None,
    weights: Mapping[str, npt.ArrayLike] | None = None,
) -> tuple[Adapter, dict[str, dict[str, Array]]]:
    """Load an adapter and its params from a file.

    `tnadapt.binding.read_checkpoint(path).extra` holds the extra arrays of the file.

    Args:
        path: the file to read.
        dtype: the dtype of the params; by default float32, or float64 if stored in it.
        weights: the host's weights by path, as for `init`; needed if a factor is the host's weight.
        draw_limit: the most frozen numbers to draw again, as for `tnadapt.binding.read_checkpoint`.

    Returns:
        The adapter and its params.

    Raises:
        FormatError: for a damaged file, weights of another host, or for float64 if it is disabled in jax.
    """
    checkpoint = read_checkpoint(path, draw_limit=draw_limit)
    wanted = (jnp.float64 if checkpoint.is_double else jnp.float32) if dtype is None else dtype
    if np.dtype(wanted) != jax.dtypes.canonicalize_dtype(wanted):
        raise FormatError(
            f"{path}: expected float32, since 64-bit types are disabled in jax, got float64.\n"
            "Set jax_enable_x64, or pass dtype=jnp.float32."
        )
    hosts = read_hosts(checkpoint.adapter, weights)
    for site_path, known in checkpoint.hosts.items():
        site = checkpoint.adapter.find(site_path)[1]
        check_fingerprint(Path(path), site, known, hosts[host_entry(site)])
    return checkpoint.adapter, tree_of(checkpoint.adapter, {**checkpoint.params, **hosts}, wanted)


def _numpy(value: ArrayLike) -> npt.NDArray[np.generic]:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
