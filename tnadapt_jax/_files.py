"""The adapter's file, the same as that of every other framework."""

import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array
from jax.typing import ArrayLike, DTypeLike

import tnadapt
from tnadapt import Adapter, FormatError
from tnadapt.binding import answers, expect_adapter, expect_path, params_to_store, read_checkpoint
from tnadapt_jax._params import Params, check_params, tree_of

__all__ = ["load", "save"]


@answers(FormatError)
def save(
    adapter: Adapter, params: Params, path: str | os.PathLike[str], *, extra: Mapping[str, ArrayLike] | None = None
) -> None:
    """Write the adapter's file: its trained factors, and arrays of the host that were trained along.

    bfloat16 is stored as float32. A frozen factor is stored only if it no longer holds the values of its seed, up to
    its dtype's rounding. Raises SiteError for params that are not this adapter's, FormatError for what no file holds.
    """
    expect_adapter(adapter, "save", FormatError)
    expect_path(path, "save", FormatError)
    check_params(adapter, params)
    both = dict(params["trainable"]) | dict(params["frozen"])
    values = {name: _numpy(value) for name, value in both.items()}
    kept = params_to_store(adapter, values, {name: value.dtype.name for name, value in both.items()})
    tnadapt.save(adapter, kept, path, extra={name: _numpy(value) for name, value in (extra or {}).items()})


@answers(FormatError)
def load(
    path: str | os.PathLike[str], *, dtype: DTypeLike | None = None
) -> tuple[Adapter, dict[str, dict[str, Array]]]:
    """The adapter and its params from a file; `tnadapt.binding.read_checkpoint(path).extra` has what was saved along.

    Without a dtype they are float32, or float64 if stored so. Raises FormatError for a file that is damaged, or for
    float64 where jax has it switched off.
    """
    checkpoint = read_checkpoint(path)
    wanted = (jnp.float64 if checkpoint.is_double else jnp.float32) if dtype is None else dtype
    if np.dtype(wanted) != jax.dtypes.canonicalize_dtype(wanted):
        raise FormatError(
            f"{path}: its numbers are float64.\nHowever, jax has 64 bits switched off.\n"
            "Set jax_enable_x64, or pass dtype=jnp.float32."
        )
    return checkpoint.adapter, tree_of(checkpoint.adapter, checkpoint.params, wanted)


def _numpy(value: ArrayLike) -> npt.NDArray[np.generic]:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
