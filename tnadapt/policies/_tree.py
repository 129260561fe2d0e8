"""A bond as the edge of a tree of factors: the two sides of the network, and what each is up to an isometry."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tnadapt._language import Adapter, Group
from tnadapt._values import contract, map_factor, primed
from tnadapt.policies._bonds import Bond, why_no_carrier

__all__: list[str] = []

Array = npt.NDArray[np.float64]
Modes = tuple[str, ...]
TWO = 2  # carriers of an edge


@dataclass(frozen=True)
class Edge:
    """A bond between two factors of a tree.

    `nodes` has the modes of every factor of the tree, without the `batch`: outer modes that all of them carry, along
    which there is an independent tree for each index. `others` are the factors that nothing links to the tree.
    """

    bond: str
    ends: tuple[str, str]
    nodes: Mapping[str, Modes]
    batch: Modes
    others: Modes


def find_edge(adapter: Adapter, bond: Bond) -> Edge | str:
    """Return a bond as the edge of a tree; or why it is none, as a text."""
    network = bond.groups[0].network
    if len(network.terms) > 1:
        return "the update is a sum of several terms"
    if len(bond.modes) > 1:
        return f"other bonds have its size ({', '.join(sorted(bond.modes - {bond.mode}))})"
    names = network.terms[0].nodes
    ends = tuple(name for name in names if bond.mode in network.nodes[name].modes)
    if reason := _why_not_ends(adapter, bond, ends):
        return reason
    batch, tree = _component(bond.groups[0], names, ends[0])
    nodes = {name: tuple(mode for mode in network.nodes[name].modes if mode not in batch) for name in tree}
    if reason := _why_no_tree(bond.groups[0], nodes):
        return reason
    others = tuple(name for name in names if name not in tree)
    return Edge(bond.mode, (ends[0], ends[1]), nodes, batch, others)


def _why_not_ends(adapter: Adapter, bond: Bond, ends: Modes) -> str:
    """Say why the factors that carry a bond cannot be those of an edge; "" if they can."""
    network = bond.groups[0].network
    if len(ends) != TWO:
        return why_no_carrier(adapter, bond) or f"{len(ends)} factors carry it: it is a hyperedge"
    for node in (network.nodes[name] for name in ends):
        factor, where = network.factors[node.factor], f"{node.factor!r}, which carries it,"
        if not factor.trainable or node.at_start:
            return f"{where} is frozen"
        if factor.map:
            return f"{where} is made by a map"
        if sum(other.factor == node.factor for other in network.nodes.values()) > 1:
            return f"{where} is used twice"
        if len(adapter.groups) > 1 and adapter.spec.is_global(node.factor):
            return f"{where} is shared by all groups"
    return ""


def _why_no_tree(group: Group, nodes: Mapping[str, Modes]) -> str:
    """Say why factors that are linked to each other are no tree of arrays; "" if they are one."""
    network = group.network
    if any(network.factors[node.factor].init.is_host or node.at_start for node in network.nodes.values()):
        return "the host's weight or starting values are a factor of the update"
    times = Counter(mode for modes in nodes.values() for mode in modes)
    outer = {*network.over, *network.out_modes, *network.in_modes}
    if wide := [mode for mode, number in times.items() if number > (1 if mode in outer else TWO)]:
        return f"{wide[0]!r} joins {times[wide[0]]} factors of its network: it is a hyperedge"
    return "its network has a loop" if sum(n == TWO for n in times.values()) >= len(nodes) else ""


def _component(group: Group, names: Modes, first: str) -> tuple[Modes, Modes]:
    """Return the outer modes that all factors linked to the first one carry, and these factors.

    Such a mode links nothing: there is a network for each of its indices.
    """
    network, batch = group.network, set[str]()
    outer = {*network.over, *network.out_modes, *network.in_modes}
    while True:
        tree, left = [first], [name for name in names if name != first]
        for name in tree:
            modes = {*network.nodes[name].modes} - batch
            joined = [other for other in left if modes & {*network.nodes[other].modes}]
            tree += joined
            left = [other for other in left if other not in joined]
        common = set.intersection(*({*network.nodes[name].modes} for name in tree)) & outer
        if common <= batch or len(tree) == 1:
            return tuple(sorted(batch)), tuple(tree)
        batch |= common


def arrays_of(adapter: Adapter, group: Group, params: Mapping[str, Array]) -> dict[str, Array]:
    """Return the array of each node of a group's network, over all its sites."""
    found = {}
    for name, node in group.network.nodes.items():
        factor = group.network.factors[node.factor]
        held = params[adapter.slot_name(group, node.factor)]
        cut = tuple(slice(group.network.sizes[mode]) for mode in factor.held)
        found[name] = map_factor(factor.map, held[cut])
    return found


def root_of(edge: Edge, arrays: Mapping[str, Array], modes: Mapping[str, Modes], end: str) -> Array:
    """Return the triangular factor R (batch, k, size of the bond) of one side of an edge, whose matrix is Q R.

    The side is that of the factor `end`. Each factor is decomposed once, from the leaves to the edge, so that the
    matrix of a side is never made.
    """
    return _root(edge, arrays, modes, end, edge.bond)


def _root(edge: Edge, arrays: Mapping[str, Array], modes: Mapping[str, Modes], node: str, toward: str) -> Array:
    operands = [(arrays[node], modes[node])]
    answer = [mode for mode in modes[node] if mode not in (*edge.batch, toward)]
    for place, mode in enumerate(answer):
        child = next((name for name, other in edge.nodes.items() if name != node and mode in other), None)
        if child is not None:
            operands.append((_root(edge, arrays, modes, child, mode), (*edge.batch, f"{mode}*", mode)))
            answer[place] = f"{mode}*"
    whole = contract(operands, (*edge.batch, *answer, toward))
    shape, number = whole.shape[: len(edge.batch)], whole.shape[-1]
    rows = math.prod(whole.shape[len(edge.batch) : -1])
    return np.asarray(np.linalg.qr(whole.reshape(*shape, rows, number), mode="r"))


def norms_of_others(edge: Edge, group: Group, arrays: Mapping[str, Array]) -> Array:
    """Return the norm (batch) of the product of the factors that nothing links to the tree; 1 if there are none."""
    network = group.network
    sizes = [network.sizes[mode] for mode in edge.batch]
    if not edge.others:
        return np.ones(sizes)
    operands = [(arrays[name], network.nodes[name].modes) for name in edge.others]
    outer = {*network.over, *network.out_modes, *network.in_modes}
    held = {mode for _, modes in operands for mode in modes}
    answer = tuple(mode for mode in edge.batch if mode in held)
    squares = contract([*operands, *primed(operands, outer)], answer)
    shape = [network.sizes[mode] if mode in answer else 1 for mode in edge.batch]
    return np.broadcast_to(np.sqrt(np.maximum(squares, 0.0)).reshape(shape), sizes)
