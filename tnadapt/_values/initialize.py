"""Starting values: one stream of random numbers per (seed, name in params), the same in every framework."""

import hashlib
import math
from collections.abc import Mapping
from functools import reduce

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError, SpecError
from tnadapt._language import START, Adapter, Group, Slot, expect_adapter
from tnadapt._signature import answers, mistake, told
from tnadapt._values.host_starts import Stack, read_hosts, read_start

__all__ = ["Params", "drawn_starts", "init", "redraw"]

Params = dict[str, npt.NDArray[np.float64]]

CHUNK = 2**16  # numbers that are rounded at once: their copies stay in the cache


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
    for group in adapter.groups:
        reader = _Reader(adapter, group, weights, params)
        for name in adapter.spec.arrays:
            reader.value(name)
    for name in adapter.slots.keys() - params.keys():  # starts that are kept: copied, because the originals are trained
        params[name] = params[name.removesuffix(START)].copy()
    return {name: params[name] for name in adapter.slots}


def redraw(adapter: Adapter) -> Params:
    """Draw again the starting values of all factors, frozen and trainable, except those read from the host."""
    expect_adapter(adapter, "redraw")
    return {name: sample(slot, adapter.seed) for name, slot in adapter.slots.items() if not slot.factor.init.is_read}


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
        return _rounded(np.array(read_start(factor, self.stack, self.value), dtype=np.float64, order="C"))


def sample(slot: Slot, seed: int) -> npt.NDArray[np.float64]:
    """Return the starting values of one slot. Apart from them it needs little memory, however large they are.

    Raises SiteError for a start that is read from the host's weights, and for a fan that no float can hold.
    """
    initializer = slot.factor.init
    if initializer.is_read:
        raise SiteError(
            f"{slot.name}: expected an initializer that is drawn from a seed, got {initializer.kind}, which is read "
            "from the host's weights."
        )
    amount = initializer.amount / _root_of_fan(slot)
    match initializer.kind:
        case "identity" | "cyclic" | "controlled_z":
            values = _pattern(slot)
            values *= amount
        case "rotary":
            values = _rotations(slot)
        case "constant":
            values = np.full(slot.shape, amount, dtype=np.float64)
        case "normal":
            values = np.asarray(stream(seed, slot.name).standard_normal(slot.shape))
            values *= amount
        case "uniform":
            values = np.asarray(stream(seed, slot.name).uniform(-amount, amount, slot.shape))
        case "orthogonal":
            values = _orthogonal(slot, stream(seed, slot.name))
            values *= amount
        case _:
            raise SpecError(slot.name, [f"expected a known initializer, got {initializer.kind!r}"], "factor")
    return _rounded(values)


def _root_of_fan(slot: Slot) -> float:
    fan = math.prod(slot.sizes[mode] for mode in slot.factor.init.fan)
    try:
        return math.sqrt(fan)
    except OverflowError:
        raise SiteError(
            f"{slot.name}: expected a fan that a float can hold, got ({' '.join(slot.factor.init.fan)}), a number of "
            f"{fan.bit_length():,} bits.\nName fewer modes as its fan."
        ) from None


def _rounded(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Round contiguous values in place to the nearest float32 numbers, and return them."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        part[:] = part.astype(np.float32)
    return values


def _pattern(slot: Slot) -> npt.NDArray[np.float64]:
    """Return the fixed values of a slot.

    identity: 1 where the indices of the inner modes are equal, else 0. cyclic: 1 where the first index is the sum of
    the others modulo its size, else 0. controlled_z: -1 where every inner index is the last, else 1.
    """
    index = np.indices(slot.shape, sparse=True)  # dense ones would take 8 bytes for each mode of each entry
    inner = [axis for axis, mode in enumerate(slot.factor.modes) if mode in slot.inner]
    match slot.factor.init.kind:
        case "cyclic":
            base, value, where = 0.0, 1.0, index[0] == sum(index[1:]) % slot.shape[0]
        case "controlled_z":
            at_end = [index[axis] == slot.shape[axis] - 1 for axis in inner]
            base, value, where = 1.0, -1.0, reduce(np.logical_and, at_end, np.True_)
        case _:
            alike = [index[axis] == index[inner[0]] for axis in inner]
            base, value, where = 0.0, 1.0, reduce(np.logical_and, alike, np.True_)
    values = np.full(slot.shape, base)
    np.copyto(values, value, where=where)
    return values


def _rotations(slot: Slot) -> npt.NDArray[np.float64]:
    """Return at position h the matrix that turns each pair (k, k + n/2) by h base^(-2k/n), alike at every site."""
    number, length = slot.shape[-3], slot.shape[-1]
    low = np.arange(length // 2)
    angles = np.outer(np.arange(number), slot.factor.init.amount ** (-2.0 * low / length))
    values = np.zeros((number, length, length))
    values[:, low, low] = values[:, low + length // 2, low + length // 2] = np.cos(angles)
    values[:, low + length // 2, low] = np.sin(angles)
    values[:, low, low + length // 2] = -np.sin(angles)
    return np.array(np.broadcast_to(values, slot.shape), order="C")


def stream(seed: int, name: str) -> np.random.RandomState:
    """Return the random stream of (seed, name). numpy promises stable values of RandomState and SeedSequence."""
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype="<u4")
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, *words.tolist()])))


def _orthogonal(slot: Slot, random: np.random.RandomState) -> npt.NDArray[np.float64]:
    """Draw one matrix per index of the site modes, with orthogonal rows or columns, whichever are fewer."""
    inner = [place for place, mode in enumerate(slot.factor.modes) if mode in slot.inner]
    outer = [place for place in range(len(slot.shape)) if place not in inner]
    shape = [slot.shape[place] for place in inner]
    rows = shape[0] if shape else 1
    stack = random.standard_normal((math.prod(slot.shape[place] for place in outer), rows, math.prod(shape[1:])))
    tall = stack if stack.shape[1] >= stack.shape[2] else stack.swapaxes(1, 2)
    q, r = np.linalg.qr(tall)
    q = q * np.where(np.diagonal(r, axis1=1, axis2=2) < 0, -1.0, 1.0)[:, None, :]
    q = q if tall is stack else q.swapaxes(1, 2)
    sizes = [slot.shape[place] for place in (*outer, *inner)]
    return np.array(np.transpose(q.reshape(sizes), np.argsort([*outer, *inner])), order="C")
