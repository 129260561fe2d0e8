"""Starting values: one stream of numbers for each (seed, name in params), the same on every framework."""

import hashlib
import math

import numpy as np
import numpy.typing as npt

from tnadapt._spec import Adapter, Slot

__all__ = ["Params", "init"]

Params = dict[str, npt.NDArray[np.float64]]


def init(adapter: Adapter) -> Params:
    """The starting values of every factor, frozen ones too: name -> float64 array of the slot's shape.

    Every value is a float32 number, so that a framework that keeps float32 parameters holds exactly these. A factor's
    values follow from (seed, its name) alone: another factor moves nothing.
    """
    return {name: draw(slot, adapter.seed) for name, slot in adapter.slots.items()}


def draw(slot: Slot, seed: int) -> npt.NDArray[np.float64]:
    """The starting values of one slot."""
    law = slot.factor.init
    amount = law.amount / math.sqrt(math.prod(slot.sizes[mode] for mode in law.fan))
    match law.law:
        case "constant":
            values = np.full(slot.shape, amount)
        case "normal":
            values = amount * stream(seed, slot.name).standard_normal(slot.shape)
        case "uniform":
            values = stream(seed, slot.name).uniform(-amount, amount, slot.shape)
        case _:
            values = amount * _orthogonal(slot, stream(seed, slot.name))
    return np.asarray(values, dtype=np.float64).astype(np.float32).astype(np.float64)


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
