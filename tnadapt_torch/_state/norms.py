"""Frobenius norms of factors and updates, computed without dense updates if the network allows it."""

import math
from collections.abc import Mapping

import opt_einsum
import torch
from torch import Tensor

from tnadapt import Adapter
from tnadapt.binding import Group, Network, equation_of
from tnadapt_torch._run import Update, map_factor
from tnadapt_torch._sharded import whole

__all__: list[str] = []


def norms(adapter: Adapter, params: Mapping[str, Tensor], updates: Mapping[str, Update]) -> dict[str, float]:
    """Compute the norms of `AdapterState.norms`; `updates` are the updates of the sites by path."""
    wide = {name: whole(value.detach()).double() for name, value in params.items()}
    squares = {name: 0.0 for name, factor in adapter.spec.arrays.items() if factor.trainable}
    for name in squares:
        slots = {adapter.slot_name(group, name) for group in adapter.groups}
        squares[name] = sum(wide[slot].square().sum().item() for slot in slots)
    total = 0.0
    for group in adapter.groups:
        # The products of factors lose a small difference of two terms, and a host's weight is another one at each site.
        if len(group.network.terms) > 1 or adapter.hosts:
            like = next(iter(wide.values()))
            with torch.no_grad():
                total += sum(updates[site.path].delta(like).square().sum().item() for site in group.sites)
        else:
            total += _square(adapter, group, wide)
    return {name: math.sqrt(square) for name, square in squares.items()} | {"dW": math.sqrt(max(total, 0.0))}


def _square(adapter: Adapter, group: Group, wide: Mapping[str, Tensor]) -> float:
    """Compute the sum of ||dW||^2 over the sites of a group."""
    network = group.network
    equation, kept = contraction(network)
    factors = []
    for part in adapter.address(group.sites[0]).parts.values():
        held = wide[part.name][part.stack]
        factors.append(map_factor(part.factor.map, held) if part.factor.map else held)
    squares = opt_einsum.contract(equation, *factors, *factors)
    places = [adapter.address(site).index for site in group.sites]
    chosen = [squares[tuple(place[mode] for mode in kept)] for place in places]
    return network.scale**2 * torch.stack(chosen).sum().item()


def contraction(network: Network) -> tuple[str, tuple[str, ...]]:
    """Return the equation that contracts a network with itself, and the modes of its result.

    The operands are the nodes, then the nodes again with renamed bonds. The axes of the weight are summed; the site
    modes of the nodes are kept, and they are the modes of the result.
    """
    outer = {*network.over, *network.out_modes, *network.in_modes}
    first = [node.modes for node in network.nodes.values()]
    second = [tuple(mode if mode in outer else f"{mode}'" for mode in modes) for modes in first]
    kept = tuple(mode for mode in network.over if any(mode in modes for modes in first))
    return equation_of([*first, *second], kept), kept
