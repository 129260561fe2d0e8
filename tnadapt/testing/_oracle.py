"""The slow and obvious truth: updates by their definition, gradients by leaving one factor out."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tnadapt._init import Params, init
from tnadapt._network import Group, Network, Site
from tnadapt._spec import Adapter

__all__ = ["dense", "gradients", "random_params"]

Array = npt.NDArray[np.float64]


def random_params(adapter: Adapter, random: np.random.Generator, *, frozen: bool = False) -> Params:
    """Params as after training: every trainable entry drawn anew; on request every frozen entry too."""
    return {
        name: random.standard_normal(value.shape) if frozen or adapter.slots[name].factor.trainable else value
        for name, value in init(adapter).items()
    }


def cut_of(adapter: Adapter, group: Group, site: Site, factor: str) -> tuple[int | slice, ...]:
    """Where a site's part of a factor lies in the array of params: its row along site modes, the leading part."""
    index, sizes = group.index(site), group.network.sizes
    return tuple(index.get(mode, slice(sizes[mode])) for mode in group.network.factors[factor].modes)


def local(adapter: Adapter, params: Mapping[str, Array], site: Site) -> tuple[Network, dict[str, Array]]:
    """The network of a site and the arrays that it reads, by factor, without site modes."""
    group, _ = adapter.find(site)
    arrays = {
        name: np.asarray(params[adapter.slot_name(group, name)])[cut_of(adapter, group, site, name)]
        for name in group.network.factors
    }
    return group.network, arrays


def dense(adapter: Adapter, params: Mapping[str, Array], site: Site) -> Array:
    """The update by its definition: every factor spread over all modes, all multiplied, the bonds summed."""
    network, arrays = local(adapter, params, site)
    update = _product(network, arrays)
    if adapter.spec.centered:
        update = update - _product(network, local(adapter, init(adapter), site)[1])
    return network.scale * update.reshape(site.shape)


def _product(network: Network, arrays: Mapping[str, Array]) -> Array:
    outer = [*network.out_modes, *network.in_modes]
    order = [*outer, *(mode for mode in network.sizes if mode not in outer and mode not in network.over)]
    whole = np.ones([network.sizes[mode] for mode in order])
    for name, array in arrays.items():
        whole = whole * _spread(array, network.local_modes(name), order)
    return np.asarray(whole.sum(axis=tuple(range(len(outer), len(order)))))


def _spread(array: Array, modes: tuple[str, ...], order: list[str]) -> Array:
    """The array with an axis for every mode of `order`, of length 1 where it has none."""
    turned = np.transpose(array, [modes.index(mode) for mode in order if mode in modes])
    sizes = iter(turned.shape)
    return turned.reshape([next(sizes) if mode in modes else 1 for mode in order])


def gradients(adapter: Adapter, params: Mapping[str, Array], pulls: Mapping[str, npt.ArrayLike]) -> Params:
    """The gradient of sum(pull * delta), over the sites that have a pull, by every trainable entry.

    `pulls` maps paths to arrays of the shape of that site's weight. An update is linear in each factor, so its
    gradient is the network without that factor. Answers by the names of params, in their shapes.
    """
    totals = {name: np.zeros(slot.shape) for name, slot in adapter.slots.items() if slot.factor.trainable}
    for path, pull in pulls.items():
        group, site = adapter.find(path)
        network, arrays = local(adapter, params, site)
        outer = [*network.out_modes, *network.in_modes]
        order = [*outer, *(mode for mode in network.sizes if mode not in outer and mode not in network.over)]
        split = np.asarray(pull, dtype=np.float64).reshape([network.sizes[mode] for mode in outer])
        for name, factor in network.factors.items():
            if not factor.trainable:
                continue
            whole = np.ones([network.sizes[mode] for mode in order]) * _spread(split, tuple(outer), order)
            for other, array in arrays.items():
                whole = whole if other == name else whole * _spread(array, network.local_modes(other), order)
            modes = network.local_modes(name)
            summed = whole.sum(axis=tuple(axis for axis, mode in enumerate(order) if mode not in modes))
            kept = [mode for mode in order if mode in modes]
            part = summed.transpose([kept.index(mode) for mode in modes])
            totals[adapter.slot_name(group, name)][cut_of(adapter, group, site, name)] += network.scale * part
    return totals
