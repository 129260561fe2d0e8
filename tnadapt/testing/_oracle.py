"""A slow and obvious reference: updates from their definition, gradients from the network without one factor."""

import math
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from tnadapt._hosts import Site
from tnadapt._language import Adapter, Network, Part, Term
from tnadapt._planning import Convolution, Labeled, NumpyBackend, Plan, run
from tnadapt._values import Params, init, map_factor, pull_back

__all__ = ["dense", "gradients", "random_params", "start_params"]

Array = npt.NDArray[np.float64]


def random_params(adapter: Adapter, random: np.random.Generator, *, frozen: bool = False) -> Params:
    """Return params as after training: every trainable entry is random, and on request every frozen entry too.

    The host's weights are random already; their patterns are not.
    """

    def is_random(name: str) -> bool:
        if name in adapter.hosts:
            return frozen and adapter.hosts[name][1] == "host_mask"
        return frozen or adapter.slots[name].factor.trainable

    return {
        name: random.standard_normal(value.shape) if is_random(name) else value
        for name, value in start_params(adapter).items()
    }


def start_params(adapter: Adapter) -> Params:
    """Return the starting values. Those read from a host come from random weights, drawn with the adapter's seed.

    It is not that seed alone, since a law may draw its own numbers with the same one, and they would then be equal.
    """
    if not adapter.reads_weights:
        return init(adapter)
    random = np.random.default_rng([adapter.seed, 1])
    return init(
        adapter, {path: random.standard_normal(sites[0].weight_shape) for path, sites in adapter.weights.items()}
    )


def local(adapter: Adapter, params: Mapping[str, Array], site: Site) -> tuple[Network, dict[str, Array]]:
    """Return the network of a site and the array of each of its nodes there, without site modes."""
    address = adapter.address(site)
    begin = start_params(adapter) if any(part.name not in params for part in address.parts.values()) else {}
    arrays = {
        name: map_factor(part.factor.map, _held(address.group.network, part, params, begin)[part.cut])
        for name, part in address.parts.items()
    }
    return address.group.network, arrays


def _held(network: Network, part: Part, params: Mapping[str, Array], begin: Mapping[str, Array]) -> Array:
    """Return the array that a part is cut from: a start that is no entry of the params is that of the factor."""
    held = params[part.name] if part.name in params else begin[part.source]
    is_host = part.factor.init.is_host
    return np.reshape(held, [network.sizes[mode] for mode in part.factor.modes]) if is_host else np.asarray(held)


def dense(adapter: Adapter, params: Mapping[str, Array], site: Site) -> Array:
    """Return an update from its definition: in each term, multiply all nodes, broadcast; sum over bonds and terms."""
    network, arrays = local(adapter, params, site)
    update = sum(term.sign * _product_of(network, term, arrays) for term in network.terms)
    below = network.scale * np.asarray(update).reshape(site.shape)
    if not network.magnitude:
        return below
    host, ratios = _rows(adapter, params, site, below)
    return ratios * (host + below) - host


def _rows(adapter: Adapter, params: Mapping[str, Array], site: Site, below: Array) -> tuple[Array, Array]:
    """Return the host's weight, and for each row its magnitude over its length with the update below it."""
    magnitude = adapter.address(site).magnitude
    host = np.reshape(params[f"{site.path}:host"], site.shape)
    lengths = [float(np.sqrt(np.sum(row**2))) for row in host + below]
    ones = (site.shape[0], *[1] * (len(site.shape) - 1))
    held = np.ones(site.shape[0])
    if magnitude is not None:
        held = params[magnitude.lengths.name][magnitude.lengths.cut].reshape(-1)
    return host, (held / [length or 1.0 for length in lengths]).reshape(ones)


def rounding_size(adapter: Adapter, params: Mapping[str, Array], site: Site) -> float:
    """Return the largest sum of absolute terms of an entry of an update: the scale of its rounding error."""
    network, arrays = local(adapter, params, site)
    sizes = {name: np.abs(array) for name, array in arrays.items()}
    total = sum(_product_of(network, term, sizes) for term in network.terms)
    size = abs(network.scale) * float(np.asarray(total).max())
    if not network.magnitude:
        return size
    begin = (
        start_params(adapter) if any(part.name not in params for part in adapter.address(site).parts.values()) else {}
    )
    plain = network.scale * np.asarray(sum(t.sign * _product_of(network, t, arrays) for t in network.terms))
    host, ratios = _rows(adapter, {**begin, **params}, site, plain.reshape(site.shape))
    return float((np.abs(ratios).max() + 1.0) * (np.abs(host).max() + size)) * math.sqrt(host[0].size)


def _product_of(network: Network, term: Term, arrays: Mapping[str, Array]) -> Array:
    parts = [(arrays[name], network.local_modes(name)) for name in term.nodes]
    return _product(parts, (*network.out_modes, *network.in_modes), network)


def _product(parts: Sequence[tuple[Array, tuple[str, ...]]], kept: tuple[str, ...], network: Network) -> Array:
    """Multiply parts one by one, each broadcast to all modes. Sum over a mode once no later part carries it."""
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
    """Return the array with an axis for every mode of `order`, of length 1 for the modes that it lacks."""
    turned = np.transpose(array, [modes.index(mode) for mode in order if mode in modes])
    sizes = iter(turned.shape)
    return turned.reshape([next(sizes) if mode in modes else 1 for mode in order])


def gradients(adapter: Adapter, params: Mapping[str, Array], pulls: Mapping[str, npt.ArrayLike]) -> Params:
    """Return the gradient of sum(pull * delta) over all sites with a pull, with respect to every trainable entry.

    A term is linear in each node. The gradient with respect to a node is therefore the term without it, which the
    node's map, if any, pulls back. That of a factor is the sum over its nodes.

    Args:
        adapter: a spec bound to sites.
        params: the values at which to differentiate.
        pulls: arrays of the shape of a site's weight, by the site's path.

    Returns:
        The gradients by the names of the params, in their shapes.
    """
    totals = {name: np.zeros(slot.shape) for name, slot in adapter.slots.items() if slot.factor.trainable}
    for path, pull in pulls.items():
        address = adapter.address(path)
        network, arrays = local(adapter, params, address.site)
        outer = [*network.out_modes, *network.in_modes]
        wanted = np.asarray(pull, dtype=np.float64)
        if address.magnitude is not None:
            below = np.asarray(sum(t.sign * _product_of(network, t, arrays) for t in network.terms))
            update = network.scale * below.reshape(address.site.shape)
            host, ratios = _rows(adapter, params, address.site, update)
            part = address.magnitude.lengths
            flat = (wanted * (host + update)).reshape(len(host), -1).sum(axis=1)
            lengths = np.linalg.norm((host + update).reshape(len(host), -1), axis=1)
            totals[part.name][part.cut] += (flat / np.where(lengths > 0, lengths, 1.0)).reshape(
                totals[part.name][part.cut].shape
            )
            wanted = wanted * ratios
        split = wanted.reshape([network.sizes[mode] for mode in outer])
        for term in network.terms:
            for name in term.nodes:
                if network.is_trained(name):
                    others = [(arrays[other], network.local_modes(other)) for other in term.nodes if other != name]
                    pulled_back = _product([*others, (split, tuple(outer))], network.local_modes(name), network)
                    where = address.parts[name]
                    held = np.asarray(params[where.name])[where.cut]
                    pulled = pull_back(where.factor.map, held, pulled_back)
                    totals[where.name][where.cut] += term.sign * network.scale * pulled
    return totals


def least_cut(network: Network) -> int:
    """Return the smallest product of the sizes of cut modes, over all ways to partition the nodes of one term."""
    names = list(network.nodes)
    cuts = []
    for sides in product((0, 1), repeat=len(names)):
        touched = [set(network.out_modes), set(network.in_modes)]
        for name, side in zip(names, sides, strict=True):
            touched[side] |= set(network.local_modes(name))
        cuts.append(network.volume(touched[0] & touched[1]))
    return min(cuts)


class CountingBackend(NumpyBackend):
    """A `NumpyBackend` that counts flops: one per multiplication, and one per addition in a step that sums.

    A complex product counts as four, and a real transform of length n as 5/2 n log2(n).
    """

    def __init__(self) -> None:
        """Set the count of flops to 0."""
        self.flops = 0

    def contract(self, left: Labeled, right: Labeled, kept: tuple[str, ...], wanted: tuple[str, ...]) -> Labeled:
        """Multiply and sum, and count the flops."""
        sizes = dict(pair for side in (left, right) for pair in zip(side.modes, side.array.shape, strict=True))
        self.flops += math.prod(sizes.values()) * (1 if len(kept) == len(sizes) else 2)
        return super().contract(left, right, kept, wanted)

    def convolve(self, left: Labeled, right: Labeled, kept: tuple[str, ...], how: Convolution) -> Labeled:
        """Convolve, and count the flops."""
        before = self.flops
        made = super().convolve(left, right, kept, how)
        lines = sum(value.array.size // how.size for value in (left, right, made))
        self.flops += 3 * (self.flops - before) + lines * math.ceil(2.5 * how.size * math.log2(how.size))
        return made


def run_plan(order: Plan, operands: Mapping[str, Array]) -> tuple[Array, int]:
    """Run a plan. Return its result and the number of flops."""
    backend = CountingBackend()
    named = [Labeled(operands[name], modes) for name, modes in zip(order.operands, order.inputs, strict=True)]
    return run(order, named, backend).array, backend.flops
