"""Starting values: one stream of random numbers per (seed, name in params), the same in every framework."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError
from tnadapt._language import START, Adapter, Group, expect_adapter
from tnadapt._progress import watched
from tnadapt._signature import answers, mistake, told
from tnadapt._values.draw import rounded, sample
from tnadapt._values.host_starts import Stack, read_hosts, read_start
from tnadapt._values.magnitude import read_magnitudes

__all__ = ["Params", "drawn_starts", "init", "redraw"]

Params = dict[str, npt.NDArray[np.float64]]
"""The values of every factor: name -> array."""


@answers(SiteError)
def init(adapter: Adapter, weights: Mapping[str, npt.ArrayLike] | None = None) -> Params:
    """Return the starting values of every factor, frozen ones included: name -> float64 array of the slot's shape.

    Every value is a float32 number, so a framework with float32 parameters holds exactly these values. The values of
    a factor depend only on the seed and its name, not on the other factors. `weights` are the host's weights by path,
    of shape (out, in); only initializers that are read from the host need them. If a factor is the host's weight, the
    result has the weights too, as they are, under names that end in ":host".
    Raises SiteError if a weight that is needed is missing, has the wrong shape, or holds NaN or infinity.
    """
    expect_adapter(adapter, "init")
    if not isinstance(weights, Mapping | None):
        todo = "Pass a mapping from paths to arrays (out, in)."
        raise mistake(SiteError, "init", "the host's weights by path", told(weights), todo)
    return start_values(adapter, weights) | read_hosts(adapter, weights)


def start_values(adapter: Adapter, weights: Mapping[str, npt.ArrayLike] | None = None) -> Params:
    """Return the starting values of `init` without the host's weights themselves."""
    params: Params = {}
    with watched(adapter.groups, "starting values") as groups:
        for group in groups:
            reader = _Reader(adapter, group, weights, params)
            for name in adapter.spec.arrays:
                if name != adapter.spec.magnitude:
                    reader.value(name)
    params |= {name: rounded(value) for name, value in read_magnitudes(adapter, params, weights).items()}
    for name in adapter.slots.keys() - params.keys():  # starts that are kept: copied, because the originals are trained
        params[name] = params[name.removesuffix(START)].copy()
    return {name: params[name] for name in adapter.slots}


def redraw(adapter: Adapter) -> Params:
    """Draw again the starting values of all factors, frozen and trainable, except those read from the host."""
    expect_adapter(adapter, "redraw")
    with watched(adapter.slots.items(), "frozen values") as slots:
        return {name: sample(slot, adapter.seed) for name, slot in slots if not slot.factor.init.is_read}


def drawn_starts(adapter: Adapter, group: Group | None = None) -> Params:
    """Draw again the starting values that the update uses, of one group or of all, by names that end in ":start".

    Starts that were read from the host are left out, since they are entries of params.
    """
    names = None if group is None else {adapter.slot_name(group, factor) + START for factor in adapter.spec.arrays}
    wanted = (name for name in adapter.starts if name not in adapter.slots and (names is None or name in names))
    return {name: sample(adapter.slots[name.removesuffix(START)], adapter.seed) for name in wanted}


class _Reader:
    """Makes the starting values of one group. The host's weights are stacked when an initializer first needs them."""

    def __init__(
        self, adapter: Adapter, group: Group, weights: Mapping[str, npt.ArrayLike] | None, known: Params
    ) -> None:
        self.adapter, self.group, self.weights, self.known = adapter, group, weights, known
        self.stack: Stack | None = None

    def value(self, factor: str) -> npt.NDArray[np.float64]:
        """Return the starting values of one factor of the group, which are made once."""
        key = self.adapter.slot_name(self.group, factor)
        if key not in self.known:
            self.known[key] = self._make(factor, key)
        return self.known[key]

    def _make(self, factor: str, key: str) -> npt.NDArray[np.float64]:
        slot = self.adapter.slots[key]
        if not slot.factor.init.is_read:
            return sample(slot, self.adapter.seed)
        if self.weights is None:
            raise SiteError(
                f"{self.adapter.spec.name}: expected the host's weights to read the start of {key} from, got none.\n"
                "Pass init(adapter, weights), with a mapping from paths to arrays (out, in)."
            )
        self.stack = self.stack or Stack(self.group, self.weights)
        return rounded(np.array(read_start(factor, self.stack, self.value), dtype=np.float64, order="C"))
