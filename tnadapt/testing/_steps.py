"""The law of first steps: how far they go is what `step_size` says, whatever the signs are."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tnadapt._language import START, Adapter, Slot, unknown_starts
from tnadapt._structure import first_gradients, step_size
from tnadapt._values import Params, init, sample
from tnadapt.testing._expect import expect, some_site
from tnadapt.testing._magnitude import of_the_sum
from tnadapt.testing._oracle import gradients, start_params

__all__: list[str] = []

DRAWS = (16, 512)  # more of them where the first seem to disagree, since few draws may all be alike
COPIES = 4096  # of a small array, for its mean square
NEAR = (0.8, 1.25)
ERRORS = 5.0  # standard errors of the mean over draws
INDEPENDENT = {"normal", "uniform"}
DRAWN = {*INDEPENDENT, "orthogonal"}
NOTHING = 1e-20  # the square of a derivative that is 0 up to rounding
Array = npt.NDArray[np.float64]


@of_the_sum
def first_steps_are_predicted(adapter: Adapter, random: np.random.Generator) -> None:
    """The first step of Adam changes the entries of an update by `step_size`, within 0.8 to 1.25 (RMS).

    Signs are those of a gradient at random. The square is averaged over them, and over starting values. Left out are
    adapters with a drawn factor twice in a term, since a mean of fourth powers needs too many draws, and those that
    multiply what moves by several factors read from one host, since these depend on each other. So are ranks above
    those of the weight, where several factors that are read or an identity are 0 from the same index on.
    """
    if _has_power(adapter) or _has_dependent_starts(adapter):
        return
    site = some_site(adapter, random)
    group, _ = adapter.find(site)
    draw, is_read = _draws(adapter, random), bool(unknown_starts(adapter.spec))
    params = draw()
    step = step_size(adapter, params)[group.name]
    if _is_padded(adapter, params):
        return
    names = [adapter.slot_name(group, name) for name in first_gradients(adapter)]
    ratios: list[float] = []
    while len(ratios) < DRAWS[-1]:
        found = gradients(adapter, params, {site.path: random.choice([-1.0, 1.0], site.shape)})
        square = sum(float(np.square(found[name]).sum()) for name in names) / math.prod(site.shape)
        if step.decrease == 0:
            expect(square <= NOTHING * group.network.scale**2, f"first step at {site.path}: expected none, got one")
            return
        ratios.append(square / step.decrease)
        if len(ratios) in DRAWS and _is_near(ratios):
            return
        params = draw()
        step = step_size(adapter, params)[group.name] if is_read else step
    ratio = math.sqrt(float(np.mean(ratios)))
    expect(False, f"first step at {site.path}: expected {NEAR[0]} to {NEAR[1]} of step_size, got {ratio:.3g}")


def _is_near(ratios: list[float]) -> bool:
    """Return whether the mean of squared ratios may be as predicted, for all that so many of them say."""
    mean, error = float(np.mean(ratios)), ERRORS * float(np.std(ratios, ddof=1)) / math.sqrt(len(ratios))
    low, high = (one**2 for one in NEAR)
    return low <= mean + error and mean - error <= high


def _has_power(adapter: Adapter) -> bool:
    """Return whether a term has a drawn factor twice."""
    arrays, nodes = adapter.spec.arrays, adapter.spec.nodes
    for term in adapter.spec.sum:
        names = [nodes[node].factor for node in term.nodes]
        if any(names.count(name) > 1 and arrays[name].init.kind in DRAWN for name in {*names} & arrays.keys()):
            return True
    return False


def _has_dependent_starts(adapter: Adapter) -> bool:
    """Return whether several factors that a decomposition of the host gives multiply one that moves."""
    factors, nodes = {**adapter.spec.arrays, **adapter.spec.hosts}, adapter.spec.nodes
    return any(
        sum(factors[nodes[name].factor].init.is_read for name in pull.others) > 1
        for pulls in adapter.spec.pulls.values()
        for pull in pulls
    )


def _is_padded(adapter: Adapter, params: Params) -> bool:
    """Return whether several factors that are read from the host, or an identity, are 0 at an index of a mode.

    They agree on which index that is, so that their squares are not independent.
    """
    slots = (slot for name, slot in adapter.slots.items() if not name.endswith(START))
    fixed = [params[slot.name] for slot in slots if slot.factor.init.is_read or slot.factor.init.kind == "identity"]
    axes = ((value, axis) for value in fixed for axis in range(value.ndim))
    gaps = [
        not np.any(np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1), axis=1).all() for value, axis in axes
    ]
    return sum(gaps) > 1


def _draws(adapter: Adapter, random: np.random.Generator) -> Callable[[], Params]:
    """Return a function that draws starting values.

    Those of independent entries are drawn as +-1 times their RMS: the mean is the same, and its error smaller.
    """
    slots = {name: slot for name, slot in adapter.slots.items() if not slot.name.endswith(START)}
    roots = {name: _root(slot, random) for name, slot in slots.items() if slot.factor.init.kind in INDEPENDENT}
    others = [slot for slot in slots.values() if slot.factor.init.kind == "orthogonal"]
    begin = start_params(adapter)

    def draw() -> Params:
        params = dict(begin)
        if unknown_starts(adapter.spec):
            shapes = {path: sites[0].weight_shape for path, sites in adapter.weights.items()}
            params = init(adapter, {path: random.standard_normal(shape) for path, shape in shapes.items()})
        seed = int(random.integers(2**32))
        params |= {slot.name: sample(slot, seed) for slot in others}
        return params | {name: root * random.choice([-1.0, 1.0], params[name].shape) for name, root in roots.items()}

    return draw


def _root(slot: Slot, random: np.random.Generator) -> float:
    """Return the RMS of the starting values of a factor, measured on many copies of its array."""
    many = replace(
        slot,
        factor=replace(slot.factor, modes=("(copies)", *slot.factor.modes)),
        shape=(max(1, COPIES // max(1, math.prod(slot.shape))), *slot.shape),
    )
    return math.sqrt(float(np.square(sample(many, int(random.integers(2**32)))).mean()))
