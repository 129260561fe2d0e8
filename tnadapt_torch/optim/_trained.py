"""The factors that an optimizer changes: whether they can be changed here, and how they are read as matrices."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from tnadapt import SiteError
from tnadapt.binding import Unfolding, as_number, mistake, told
from tnadapt_torch._sharded import is_partitioned, reshard
from tnadapt_torch._state import AdapterState, check_apart

__all__: list[str] = []


def expect_state(state: object, where: str) -> AdapterState:
    """Return the state of an adapter. Raises SiteError for anything else."""
    if isinstance(state, AdapterState):
        return state
    todo = "Pass what attach or load returned: the optimizer needs to know the network of each factor."
    raise mistake(SiteError, where, "the state of an adapter", told(state), todo)


def expect_number(value: object, where: str, word: str, *, least: float = 0.0, below: float = math.inf) -> float:
    """Return a number in [least, below). Raises SiteError for anything else."""
    value = as_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < below:
        bound = f"at least {least:g}" + ("" if below == math.inf else f" and below {below:g}")
        raise mistake(SiteError, where, f"a number of {bound} as {word}", told(value), f"Pass another {word}.")
    return float(value)


def check_trained(state: AdapterState, where: str, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the factors of these names. Raises SiteError if they are merged, or if one is offloaded or held elsewhere.

    Under fully_shard, they are shards again: what was gathered for a pass is a copy.
    """
    reshard([state, *state.host])
    check_apart(state, where)
    params = state.params()
    for name in names:
        value, wanted = params[name], state.adapter.slots[name].shape
        if value.is_meta or tuple(value.shape) != wanted or is_partitioned(value):
            got = "one on the meta device" if value.is_meta else f"a part of shape {tuple(value.shape)}"
            raise SiteError(
                f"{where}: expected the whole factor {name!r} of shape {wanted}, got {got}.\n"
                "Optimizers of whole factors work with fully_shard and DistributedDataParallel. Where another library "
                "holds factors in flat parts or offloads them, use another optimizer."
            )
    return params


def matrices(values: Tensor, fold: Unfolding) -> Tensor:
    """Read arrays (copies, *shape) as batches of matrices (copies, batch, rows, columns)."""
    turned = values.permute(0, *(axis + 1 for axis in fold.axes))
    return turned.reshape(len(values), *fold.shape)


def arrays(values: Tensor, fold: Unfolding) -> Tensor:
    """Return what `matrices` read: (copies, batch, rows, columns) as (copies, *shape)."""
    split = values.reshape(len(values), *fold.sizes)
    return split.permute(0, *(axis + 1 for axis in fold.inverse))


def evaluated(closure: object) -> object:
    """Return what a closure returns, with gradients enabled; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()  # type: ignore[operator]
