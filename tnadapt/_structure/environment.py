"""The environment of a trained factor: the Gram matrix of what its term multiplies it with, as networks to contract."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tnadapt._errors import PlanError
from tnadapt._language import Adapter, Network, Node, Part, Term, frozen, ones

__all__ = ["COUNTS", "Environment", "Piece", "Unfolding", "environments"]

Modes = tuple[str, ...]
COUNTS = "(sites)"
"""The name of the operand that counts the sites of each row. No node of a spec can have a name with brackets."""
PRIME = "'"
MOST = 1024  # rows of a Gram matrix: its eigenvectors take 10 s on two cores


@dataclass(frozen=True)
class Unfolding:
    """How an array is read as a batch of matrices: its axes in a new order, their lengths, and the shape."""

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, int, int]

    @property
    def inverse(self) -> tuple[int, ...]:
        """The order of axes that takes the array, once it has the lengths `sizes` again, back to its own."""
        return tuple(sorted(range(len(self.axes)), key=self.axes.__getitem__))


def unfolding(modes: Modes, batch: Modes, rows: Modes, sizes: Mapping[str, int]) -> Unfolding:
    """Return how an array of these modes is read as (batch, rows, all else); batch and rows have the order given."""
    rest = [mode for mode in modes if mode not in batch and mode not in rows]
    order = (*batch, *rows, *rest)
    first, second, third = (math.prod(sizes[mode] for mode in part) for part in (batch, rows, rest))
    return Unfolding(tuple(map(modes.index, order)), tuple(sizes[mode] for mode in order), (first, second, third))


@dataclass(frozen=True)
class Piece:
    """One connected part of an environment: a Gram matrix over some bonds of the factor.

    The "delta" of `network` has the shape (batch, rows, columns): one matrix for each index along modes of the factor
    that are not bonds. Node n of the network is the node `sources[n]` of the group's network, over all of its sites;
    that of the name COUNTS is `Environment.counts()`. `unfolding` reads the factor as (batch, rows, all else).
    """

    network: Network
    sources: Modes
    unfolding: Unfolding


@dataclass(frozen=True)
class Environment:
    """The Gram matrix E of a factor F: the update is linear in F, and |dW|^2 = <F, E F>, summed over all sites.

    It is `times` the Kronecker product of the matrices of the pieces, each along some bonds of the factor. Along all
    other modes of the factor it is diagonal. The scale of the network is not in it.
    """

    factor: str
    modes: Modes
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    times: int
    seen: Modes = ()
    lengths: tuple[int, ...] = ()
    places: tuple[tuple[int, ...], ...] = ()

    def counts(self) -> npt.NDArray[np.float64]:
        """Return the number of sites at each index of the site modes `seen`, where some combinations have none."""
        found = np.zeros(self.lengths)
        for place in self.places:
            found[place] += 1
        return found


def environments(adapter: Adapter) -> dict[str, tuple[Environment, Mapping[str, Part]]]:
    """Return the environment of each array of params that is trained, by name, and the parts that its nodes read.

    A node of the environment reads `stack` of its part: the values of all sites. A trained array that is in no term,
    such as a magnitude, is left out: no bond ends in it.

    Raises PlanError, with a reason for each factor, if the update is not linear in the array by one product: a factor
    with a map, in several terms, several times in a term, or shared by several groups. Also if the environment has the
    host's weight, or a Gram matrix of more than 1,024 rows.
    """
    found: dict[str, tuple[Environment, Mapping[str, Part]]] = {}
    faults: dict[str, str] = {}
    for group in adapter.groups:
        parts = adapter.address(group.sites[0]).parts
        for name, factor in group.network.factors.items():
            if not factor.trainable or name in faults or not is_in_a_term(group.network, name):
                continue
            if name in adapter.joined:
                faults[name] = "several groups share it"
                continue
            try:
                found[adapter.slot_name(group, name)] = _environment(group.network, group.places, name), parts
            except _Unfit as reason:
                faults[name] = str(reason)
    raise_faults("environments", "factors whose environment is one Gram matrix", faults)
    return found


def raise_faults(where: str, wanted: str, faults: Mapping[str, str], remedy: str = "") -> None:
    """Raise PlanError if there are faults, given as factor -> reason."""
    if not faults:
        return
    reasons = "; ".join(f"{name!r} ({reason})" for name, reason in faults.items())
    todo = remedy or "Train this adapter with another optimizer, or freeze these factors."
    raise PlanError(f"{where}: expected {wanted}, got {reasons}.\n{todo}")


class _Unfit(Exception):
    """A reason why a factor cannot be preconditioned."""


def is_in_a_term(network: Network, factor: str) -> bool:
    """Return whether a term has a factor."""
    return any(network.nodes[name].factor == factor for term in network.terms for name in term.nodes)


def place_of(network: Network, factor: str) -> tuple[Term, str] | str:
    """Return the only term that a trained factor is in, and the name of its only node there; or why it has none."""
    if network.factors[factor].map:
        return f"its entries follow from parameters by the map {network.factors[factor].map!r}"
    nodes = {name for name, node in network.nodes.items() if node.factor == factor and not node.at_start}
    terms = [term for term in network.terms if nodes & {*term.nodes}]
    if len(terms) > 1:
        return f"it is in {len(terms)} terms"
    (term,) = terms
    here = [name for name in term.nodes if name in nodes]
    return (term, here[0]) if len(here) == 1 else f"its term has it {len(here)} times"


def outer_modes(network: Network) -> frozenset[str]:
    """Return the modes that are no bonds: those of the weight and of the sites."""
    return frozenset((*network.over, *network.out_modes, *network.in_modes))


@lru_cache(maxsize=4096)
def _environment(network: Network, places: tuple[tuple[int, ...], ...] | None, factor: str) -> Environment:
    """Return the environment of a factor. Raises _Unfit if there is none."""
    place = place_of(network, factor)
    if isinstance(place, str):
        raise _Unfit(place)
    term, own = place
    modes, outer = network.nodes[own].modes, outer_modes(network)
    others = {name: network.nodes[name] for name in term.nodes if name != own}
    if any(network.factors[node.factor].init.is_host for node in others.values()):
        raise _Unfit("its term has the host's weight")
    near = {mode for node in others.values() for mode in node.modes}
    seen = tuple(mode for mode in network.over if mode in near or mode in modes)
    times = network.volume(mode for mode in network.over if mode not in seen)
    lengths = tuple(network.sizes[mode] for mode in seen)
    found: tuple[tuple[int, ...], ...] = ()
    if places is not None:
        found = tuple(tuple(at for at, mode in zip(one, network.over, strict=True) if mode in seen) for one in places)
        others[COUNTS] = Node(COUNTS, seen)
        times = 1
    pieces = tuple(
        _piece(network, {name: others[name] for name in names}, modes, outer)
        for names in _connected(others, {mode for mode in modes if mode in outer})
    )
    return Environment(factor, modes, network.shape(factor), pieces, times, seen, lengths, found)


def _connected(nodes: Mapping[str, Node], apart: Collection[str]) -> list[list[str]]:
    """Return the names of nodes that hang together by modes, except those modes that are `apart`."""
    parts: list[tuple[set[str], list[str]]] = []
    for name, node in sorted(nodes.items()):
        modes, names = {*node.modes} - {*apart}, [name]
        rest = []
        for part in parts:
            if part[0] & modes:
                modes, names = modes | part[0], part[1] + names
            else:
                rest.append(part)
        parts = [*rest, (modes, names)]
    return [sorted(names) for _, names in parts]


def _piece(network: Network, nodes: Mapping[str, Node], modes: Modes, outer: Collection[str]) -> Piece:
    """Return the network of these nodes with their copies, whose bonds have a prime."""
    carried = {mode for node in nodes.values() for mode in node.modes}
    batch = tuple(mode for mode in modes if mode in outer and mode in carried)
    bonds = tuple(mode for mode in modes if mode not in outer and mode in carried)
    rows = network.volume(bonds)
    if rows > MOST:
        raise _Unfit(f"a Gram matrix over {' '.join(bonds)} would have {rows:,} rows, more than {MOST:,}")
    sizes = dict(network.sizes) | {f"{mode}{PRIME}": size for mode, size in network.sizes.items() if mode not in outer}
    factors = {node.factor: network.factors[node.factor] for name, node in nodes.items() if name != COUNTS}
    if COUNTS in nodes:
        factors[COUNTS] = frozen(" ".join(nodes[COUNTS].modes), init=ones())
    both = dict(nodes)
    for name, node in nodes.items():
        if name != COUNTS:
            both[name + PRIME] = Node(node.factor, _primed(node.modes, outer), node.at_start)
    derived = Network((batch, bonds, _primed(bonds, outer)), (), factors, sizes, 1.0, both)
    sources = tuple(name.removesuffix(PRIME) for name in derived.nodes)
    return Piece(derived, sources, unfolding(modes, batch, bonds, network.sizes))


def _primed(modes: Iterable[str], outer: Collection[str]) -> Modes:
    return tuple(mode if mode in outer else mode + PRIME for mode in modes)
