"""Which frozen factors a file leaves out: those that have the values of their seed, which loading draws again."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tnadapt._errors import FormatError
from tnadapt._language import Adapter, Slot
from tnadapt._values import sample

__all__ = ["check_patterns"]

CAST = 2**-7  # the most by which a cast to a dtype of a framework, and back, changes a number, as a part of it


def is_changed(slot: Slot, value: npt.NDArray[Any], drawn: npt.NDArray[np.float64]) -> bool:
    """Return whether a frozen factor differs from what was drawn, so that a file has to hold it.

    Plans rely on the pattern of a `cyclic()` factor. Rounded by a cast, it counts as drawn; raises FormatError for any
    other values.
    """
    if np.array_equal(value, drawn):
        return False
    if slot.is_fixed and not np.allclose(value, drawn, rtol=CAST, atol=0):
        raise FormatError(
            f"{slot.name}: expected the pattern of cyclic(), which plans rely on, got other values.\n"
            "Use another initializer, such as zeros(), for values of your own."
        )
    return not slot.is_fixed


def check_patterns(adapter: Adapter, params: Mapping[str, npt.ArrayLike]) -> None:
    """Raise FormatError if any of these params is a `cyclic()` factor that has other values than its pattern."""
    for name in params.keys() & adapter.slots.keys():
        slot = adapter.slots[name]
        if slot.is_fixed and np.shape(params[name]) == slot.shape:
            is_changed(slot, np.asarray(params[name]), sample(slot, adapter.seed))


def rounded(drawn: npt.NDArray[np.float64], dtype: str) -> npt.NDArray[np.float64]:
    """Round drawn values, which are float32 numbers, to a dtype."""
    if dtype != "bfloat16":  # numpy does not have bfloat16: it is the upper half of a float32, rounded to even
        return drawn.astype(dtype).astype(np.float64)
    bits = drawn.astype(np.float32).view(np.uint32)
    even = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return even.view(np.float32).astype(np.float64)
