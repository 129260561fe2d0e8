"""Starting values: one stream of numbers for each (seed, name in params), the same on every framework."""

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError, SpecError
from tnadapt._language import START, Adapter, Group, Slot, expect_adapter
from tnadapt._signature import answers, mistake, told
from tnadapt._values.host_starts import Stack, read_start

__all__ = ["Params", "drawn_starts", "init", "redraw"]

Params = dict[str, npt.NDArray[np.float64]]


@answers(SiteError)
def init(adapter: Adapter, weights: Mapping[str, npt.ArrayLike] | None = None) -> Params:
    """The starting values of every factor, frozen ones too: name -> float64 array of the slot's shape.

    Every value is a float32 number, so that a framework that keeps float32 parameters holds exactly these. A factor's
    values follow from (seed, its name) alone: another factor moves nothing. `weights` are those of the host by path,
    (out, in): only laws that are read from them ask for them.
    Raises SiteError where one is needed and missing, or not of its site's shape, or holds NaN.
    """
    expect_adapter(adapter, "init")
    if not isinstance(weights, Mapping | None):
        todo = "Pass a mapping from paths to arrays (out, in)."
        raise mistake(SiteError, "init", "the host's weights by path", told(weights), todo)
    params: Params = {}
    for group in adapter.groups:
        reader = _Reader(adapter, group, weights, params)
        for name in group.network.factors:
            reader.value(name)
    for name in adapter.slots.keys() - params.keys():  # starts that are kept: a copy, since the others are trained
        params[name] = params[name.removesuffix(START)].copy()
    return {name: params[name] for name in adapter.slots}


def redraw(adapter: Adapter) -> Params:
    """The starting values that the seed gives again, of frozen and of trainable factors; none that is read."""
    expect_adapter(adapter, "redraw")
    return {name: sample(slot, adapter.seed) for name, slot in adapter.slots.items() if not slot.factor.init.is_read}


def drawn_starts(adapter: Adapter) -> Params:
    """Draw again the starting values that a centered update subtracts, of every trainable factor that is not read.

    A start that is read from the host is an entry of params under the factor's name and ":start".
    """
    if not adapter.spec.centered:
        return {}
    return {name: value for name, value in redraw(adapter).items() if adapter.slots[name].factor.trainable}


class _Reader:
    """Makes the starting values of one group, its host's weights stacked at the first law that asks for them."""

    def __init__(
        self, adapter: Adapter, group: Group, weights: Mapping[str, npt.ArrayLike] | None, known: Params
    ) -> None:
        self.adapter, self.group, self.weights, self.known = adapter, group, weights, known
        self.stack: Stack | None = None

    def value(self, factor: str) -> npt.NDArray[np.float64]:
        """The starting values of one factor of the group, made once."""
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
                f"{self.adapter.spec.name}: the start of {key} is read from the host's weights.\n"
                "However, none were given.\nPass init(adapter, weights), a mapping from paths to arrays (out, in)."
            )
        self.stack = self.stack or Stack(self.group, self.weights)
        return _rounded(read_start(factor, self.stack, self.value))


def sample(slot: Slot, seed: int) -> npt.NDArray[np.float64]:
    """The starting values of one slot. Raises SiteError for one that is read from the host's weights."""
    initializer = slot.factor.init
    if initializer.is_read:
        raise SiteError(f"{slot.name}: is read from the host's weights, and cannot be drawn from a seed.")
    amount = initializer.amount / math.sqrt(math.prod(slot.sizes[mode] for mode in initializer.fan))
    match initializer.kind:
        case "identity" | "cyclic" | "controlled_z":
            values = amount * _pattern(slot)
        case "constant":
            values = np.full(slot.shape, amount)
        case "normal":
            values = amount * stream(seed, slot.name).standard_normal(slot.shape)
        case "uniform":
            values = stream(seed, slot.name).uniform(-amount, amount, slot.shape)
        case "orthogonal":
            values = amount * _orthogonal(slot, stream(seed, slot.name))
        case _:
            raise SpecError(slot.name, [f"unknown initializer {initializer.kind!r}"], "factor")
    return _rounded(values)


def _rounded(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The nearest float32 numbers, as float64."""
    return np.asarray(values, dtype=np.float64).astype(np.float32).astype(np.float64)


def _pattern(slot: Slot) -> npt.NDArray[np.float64]:
    """1 where a slot's law says so: equal indices (identity), a first that is the others' sum (cyclic); or signs."""
    index = np.indices(slot.shape)
    if slot.factor.init.kind == "cyclic":
        return np.asarray((index[0] - index[1:].sum(axis=0)) % slot.shape[0] == 0, dtype=np.float64)
    inner = [axis for axis, mode in enumerate(slot.factor.modes) if mode in slot.inner]
    if slot.factor.init.kind == "controlled_z":
        last = np.all([index[axis] == slot.shape[axis] - 1 for axis in inner], axis=0)
        return np.where(last, -1.0, 1.0)
    return np.asarray(np.all([index[axis] == index[inner[0]] for axis in inner], axis=0), dtype=np.float64)


def stream(seed: int, name: str) -> np.random.RandomState:
    """Random numbers for (seed, name). numpy promises never to change the values of RandomState and SeedSequence."""
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype="<u4")
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, *words.tolist()])))


def _orthogonal(slot: Slot, random: np.random.RandomState) -> npt.NDArray[np.float64]:
    """Orthogonal rows or columns, whichever are fewer; one matrix for each index of the site modes."""
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
