"""The slow and obvious truth: updates by their definition, gradients by leaving one factor out."""

import math
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from tnadapt._hosts import Site
from tnadapt._language import Adapter, Network
from tnadapt._planning import Labeled, NumpyBackend, Plan, run
from tnadapt._values import Params, init, map_factor, pull_back

__all__ = ["dense", "gradients", "random_params", "start_params"]

Array = npt.NDArray[np.float64]


def random_params(adapter: Adapter, random: np.random.Generator, *, frozen: bool = False) -> Params:
    """Params as after training: every trainable entry drawn anew; on request every frozen entry too."""
    return {
        name: random.standard_normal(value.shape) if frozen or adapter.slots[name].factor.trainable else value
        for name, value in start_params(adapter).items()
    }


def start_params(adapter: Adapter) -> Params:
    """The starting values; those that are read from a host's weights, from random weights that the seed gives."""
    if not adapter.reads_weights:
        return init(adapter)
    random = np.random.default_rng(adapter.seed)
    return init(
        adapter, {path: random.standard_normal(sites[0].weight_shape) for path, sites in adapter.weights.items()}
    )


def local(adapter: Adapter, params: Mapping[str, Array], site: Site) -> tuple[Network, dict[str, Array]]:
    """Return the network of a site, and the arrays that it reads by factor, without site modes."""
    address = adapter.address(site)
    arrays = {
        name: map_factor(part.factor.map, np.asarray(params[part.name])[part.cut])
        for name, part in address.parts.items()
    }
    return address.group.network, arrays


def dense(adapter: Adapter, params: Mapping[str, Array], site: Site) -> Array:
    """The update by its definition: every factor spread over all modes, multiplied, each bond summed."""
    network, arrays = local(adapter, params, site)
    update = _update(network, arrays)
    if adapter.spec.centered:
        update = update - _update(network, local(adapter, start_params(adapter), site)[1])
    return network.scale * update.reshape(site.shape)


def magnitude(adapter: Adapter, params: Mapping[str, Array], site: Site) -> float:
    """The largest sum of the sizes of the terms of one entry of an update: what its rounding is to be measured by."""
    network, arrays = local(adapter, params, site)
    total = _update(network, {name: np.abs(array) for name, array in arrays.items()})
    if adapter.spec.centered:
        starts = local(adapter, start_params(adapter), site)[1]
        total = total + _update(network, {name: np.abs(array) for name, array in starts.items()})
    return abs(network.scale) * float(total.max())


def _update(network: Network, arrays: Mapping[str, Array]) -> Array:
    parts = [(array, network.local_modes(name)) for name, array in arrays.items()]
    return _product(parts, (*network.out_modes, *network.in_modes), network)


def _product(parts: Sequence[tuple[Array, tuple[str, ...]]], kept: tuple[str, ...], network: Network) -> Array:
    """Parts multiplied one by one, each spread over all modes; a mode is summed once no later part carries it."""
    order = [mode for mode in network.sizes if mode not in network.over]
    whole = np.ones([network.sizes[mode] if mode in kept else 1 for mode in order])
    for place, (array, modes) in enumerate(parts):
        whole = whole * _spread(array, modes, order)
        later = {mode for _, others in parts[place + 1 :] for mode in others}
        done = [axis for axis, mode in enumerate(order) if mode not in kept and mode not in later]
        whole = whole.sum(axis=tuple(done), keepdims=True)
    left = [mode for mode in order if mode in kept]
    return whole.reshape([network.sizes[mode] for mode in left]).transpose([left.index(mode) for mode in kept])


def _spread(array: Array, modes: tuple[str, ...], order: list[str]) -> Array:
    """The array with an axis for every mode of `order`, of length 1 where it has none."""
    turned = np.transpose(array, [modes.index(mode) for mode in order if mode in modes])
    sizes = iter(turned.shape)
    return turned.reshape([next(sizes) if mode in modes else 1 for mode in order])


def gradients(adapter: Adapter, params: Mapping[str, Array], pulls: Mapping[str, npt.ArrayLike]) -> Params:
    """The gradient of sum(pull * delta), over the sites that have a pull, by every trainable entry.

    `pulls` maps paths to arrays of the shape of that site's weight. An update is linear in each node, so the gradient
    by it is the network without it, which its map pulls back. Answers by the names of params, in their shapes.
    """
    totals = {name: np.zeros(slot.shape) for name, slot in adapter.slots.items() if slot.factor.trainable}
    for path, pull in pulls.items():
        address = adapter.address(path)
        network, arrays = local(adapter, params, address.site)
        outer = [*network.out_modes, *network.in_modes]
        split = np.asarray(pull, dtype=np.float64).reshape([network.sizes[mode] for mode in outer])
        for name, factor in network.factors.items():
            if factor.trainable:
                others = [(array, network.local_modes(other)) for other, array in arrays.items() if other != name]
                part = _product([*others, (split, tuple(outer))], network.local_modes(name), network)
                where = address.parts[name]
                held = np.asarray(params[where.name])[where.cut]
                totals[where.name][where.cut] += network.scale * pull_back(factor.map, held, part)
    return totals


def least_cut(network: Network) -> int:
    """The least product of the sizes of modes with carriers on both sides, over all ways to part the factors."""
    names = list(network.factors)
    cuts = []
    for sides in product((0, 1), repeat=len(names)):
        touched = [set(network.out_modes), set(network.in_modes)]
        for name, side in zip(names, sides, strict=True):
            touched[side] |= set(network.local_modes(name))
        cuts.append(network.volume(touched[0] & touched[1]))
    return min(cuts)


class CountingBackend(NumpyBackend):
    """Runs every step as `NumpyBackend` does and counts: a multiplication, and an addition where a step sums."""

    def __init__(self) -> None:
        """Start at 0 flops."""
        self.flops = 0

    def contract(self, left: Labeled, right: Labeled, kept: tuple[str, ...], wanted: tuple[str, ...]) -> Labeled:
        """Multiply and sum, and count."""
        sizes = dict(pair for side in (left, right) for pair in zip(side.modes, side.array.shape, strict=True))
        self.flops += math.prod(sizes.values()) * (1 if len(kept) == len(sizes) else 2)
        return super().contract(left, right, kept, wanted)


def run_plan(order: Plan, operands: Mapping[str, Array]) -> tuple[Array, int]:
    """Run a plan, and count its flops."""
    backend = CountingBackend()
    named = [Labeled(operands[name], modes) for name, modes in zip(order.operands, order.inputs, strict=True)]
    return run(order, named, backend).array, backend.flops
