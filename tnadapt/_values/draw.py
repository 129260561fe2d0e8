"""Drawn values: one stream of random numbers per (seed, name in params), and fixed patterns."""

import hashlib
import math
from functools import reduce

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError, SpecError
from tnadapt._language import Slot

__all__: list[str] = []

CHUNK = 2**16  # numbers that are rounded at once: their copies stay in the cache


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
    return rounded(values)


def _root_of_fan(slot: Slot) -> float:
    fan = math.prod(slot.sizes[mode] for mode in slot.factor.init.fan)
    try:
        return math.sqrt(fan)
    except OverflowError:
        raise SiteError(
            f"{slot.name}: expected a fan that a float can hold, got ({' '.join(slot.factor.init.fan)}), a number of "
            f"{fan.bit_length():,} bits.\nName fewer modes as its fan."
        ) from None


def rounded(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Round contiguous values in place to the nearest float32 numbers, and return them."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        part[:] = part.astype(np.float32)
    return values


def _pattern(slot: Slot) -> npt.NDArray[np.float64]:
    """Return the fixed values of a slot.

    identity: 1 where the indices of the inner modes are equal, else 0; those of all modes if only one is inner.
    cyclic: 1 where the first index is the sum of the others modulo its size, else 0. controlled_z: -1 where every inner
    index is the last, else 1.
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
            axes = range(len(index)) if len(inner) == 1 else inner
            alike = [index[axis] == index[axes[0]] for axis in axes]
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
