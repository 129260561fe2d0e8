"""Other factors of the same updates: what an invariant optimizer must not see."""

import numpy as np

from tnadapt import Adapter
from tnadapt.binding import Group, Network, Params

LEAST = 2  # carriers of a bond


def turned(adapter: Adapter, params: Params, seed: int = 1) -> Params:
    """Return params with the same updates: each bond between two trained factors is turned by a random matrix.

    On a bond of more factors, those that are trained are scaled along it such that the scales cancel, and if all are
    trained, they are also permuted. Each array must be one node of its group's network.
    """
    random = np.random.default_rng(seed)
    changed = {name: np.array(value, dtype=np.float64) for name, value in params.items()}
    for group in adapter.groups:
        network = group.network
        for bond in bonds_of(network):
            _turn(adapter, group, bond, changed, random)
    return changed


def bonds_of(network: Network) -> list[str]:
    outer = {*network.over, *network.out_modes, *network.in_modes}
    return sorted({mode for node in network.nodes.values() for mode in node.modes} - outer)


def _turn(adapter: Adapter, group: Group, bond: str, changed: dict, random: np.random.Generator) -> None:
    network = group.network
    names = [name for name, node in network.nodes.items() if bond in node.modes and not node.at_start]
    trained = [name for name in names if network.is_trained(name)]
    size = network.sizes[bond]
    if len(trained) < LEAST:
        return
    if len(names) == LEAST:
        g = random.standard_normal((size, size)) + 2 * np.eye(size)
        matrices = [g, np.linalg.inv(g).T]
    else:
        scales = np.exp(random.uniform(-1, 1, (len(trained), size)))
        scales[-1] = 1 / scales[:-1].prod(axis=0)
        order = random.permutation(size) if trained == names else np.arange(size)
        matrices = [np.diag(scale)[:, order] for scale in scales]
    for name, matrix in zip(trained, matrices, strict=True):
        node = network.nodes[name]
        slot, axis = adapter.slot_name(group, node.factor), node.modes.index(bond)
        changed[slot] = np.moveaxis(np.moveaxis(changed[slot], axis, -1) @ matrix, -1, axis)
