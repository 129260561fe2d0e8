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
from tnadapt.binding import answers, expect_adapter, expect_path, read_checkpoint, redraw
from tnadapt_jax._params import START, Params, check_params, tree_of

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
    drawn = redraw(adapter)
    kept = dict(params["trainable"])
    for name, value in params["frozen"].items():
        if name in adapter.slots and adapter.slots[name].is_stored:
            kept[name] = value
            continue
        is_as_drawn = _is_cast_of(value, drawn[name.removesuffix(START)])
        if name.endswith(START) and not is_as_drawn:
            raise FormatError(
                f"params['frozen'][{name!r}]: a file starts from the values of its seed.\n"
                "However, this start was changed.\nNothing was written."
            )
        if not name.endswith(START) and not is_as_drawn:
            kept[name] = value
    values = {name: _numpy(value) for name, value in kept.items()}
    tnadapt.save(adapter, values, path, extra={name: _numpy(value) for name, value in (extra or {}).items()})


@answers(FormatError)
def load(
    path: str | os.PathLike[str], *, dtype: DTypeLike | None = None
) -> tuple[Adapter, dict[str, dict[str, Array]]]:
    """The adapter and its params from a file; `tnadapt.binding.read_checkpoint(path).extra` has what was saved along.

    Without a dtype they are float32, or float64 if stored so. Raises FormatError for a file that is damaged, or for
    float64 where jax has it switched off.
    """
    checkpoint = read_checkpoint(path)
    slots = checkpoint.adapter.slots
    is_double = any(value.dtype == np.float64 for name, value in checkpoint.params.items() if slots[name].is_stored)
    wanted = (jnp.float64 if is_double else jnp.float32) if dtype is None else dtype
    if np.dtype(wanted) != jax.dtypes.canonicalize_dtype(wanted):
        raise FormatError(
            f"{path}: its numbers are float64.\nHowever, jax has 64 bits switched off.\n"
            "Set jax_enable_x64, or pass dtype=jnp.float32."
        )
    return checkpoint.adapter, tree_of(checkpoint.adapter, checkpoint.params, wanted)


def _is_cast_of(value: Array, drawn: npt.NDArray[np.float64]) -> bool:
    """Whether a factor holds what was drawn, rounded to its dtype."""
    return bool(np.array_equal(np.asarray(value), drawn.astype(value.dtype)))


def _numpy(value: ArrayLike) -> npt.NDArray[np.generic]:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
