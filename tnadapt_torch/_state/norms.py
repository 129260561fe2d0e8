"""Frobenius norms of factors, gradients and updates, without dense updates if the network allows it."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import opt_einsum
import torch
from torch import Tensor

from tnadapt import Adapter
from tnadapt.binding import Group, Network, equation_of
from tnadapt_torch._run import Update, map_factor
from tnadapt_torch._sharded import whole

__all__: list[str] = []

Squares = dict[str, Tensor]  # sums of squares, as tensors of one number on the devices of what they are sums of


def norms(adapter: Adapter, params: Mapping[str, Tensor], updates: Mapping[str, Update]) -> dict[str, float]:
    """Compute the norms of `AdapterState.norms`; `updates` are the updates of the sites by path."""
    factors = by_factor(adapter, squares_of(adapter, params))
    return roots(factors | {"dW": add(squares_of_updates(adapter, params, updates).values())})


def by_factor(adapter: Adapter, squares: Mapping[str, Tensor]) -> Squares:
    """Return the sum over the groups for each factor that has a square."""
    found = {}
    for name in adapter.spec.arrays:
        slots = dict.fromkeys(adapter.slot_name(group, name) for group in adapter.groups)
        if own := [squares[slot] for slot in slots if slot in squares]:
            found[name] = add(own)
    return found


def squares_of(adapter: Adapter, values: Mapping[str, Tensor | None]) -> Squares:
    """Return the sum of squares of each trained entry of params that has values, in float64."""
    trained = (name for name, slot in adapter.slots.items() if slot.factor.trainable)
    found = {name: value for name in trained if (value := values[name]) is not None}
    return {name: whole(value.detach()).double().square().sum() for name, value in found.items()}


def squares_of_updates(adapter: Adapter, params: Mapping[str, Tensor], updates: Mapping[str, Update]) -> Squares:
    """Return the sum of ||dW||^2 over the sites of each group, by its name."""
    wide = {name: whole(value.detach()).double() for name, value in params.items()}
    found = {}
    for group in adapter.groups:
        # The products of factors lose a small difference of two terms, and a host's weight is another one at each site.
        if len(group.network.terms) > 1 or adapter.hosts:
            like = next(iter(wide.values()))
            with torch.no_grad():
                found[group.name] = add(updates[site.path].delta(like).square().sum() for site in group.sites)
        else:
            found[group.name] = _square(adapter, group, wide)
    return found


def add(squares: Iterable[Tensor]) -> Tensor:
    """Add tensors of one number, on the device of the first."""
    first, *rest = squares
    return torch.stack([first, *(square.to(first.device) for square in rest)]).sum()


def roots(squares: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the roots of tensors of one number as numbers: one transfer, for which the device is waited for once."""
    if not squares:
        return {}
    first = next(iter(squares.values()))
    together = torch.stack([square.to(first.device) for square in squares.values()])
    return dict(zip(squares, together.clamp(min=0.0).sqrt().tolist(), strict=True))


def _square(adapter: Adapter, group: Group, wide: Mapping[str, Tensor]) -> Tensor:
    """Compute the sum of ||dW||^2 over the sites of a group."""
    network = group.network
    factors = []
    for part in adapter.address(group.sites[0]).parts.values():
        held = wide[part.name][part.stack]
        factors.append(map_factor(part.factor.map, held) if part.factor.map else held)
    contract, kept = _contraction(network, tuple(tuple(factor.shape) for factor in factors))
    squares: Tensor = contract(*factors, *factors)
    indices = (adapter.address(site).index for site in group.sites)
    places = Counter(tuple(index[mode] for mode in kept) for index in indices)  # a factor may not tell all sites apart
    if len(places) == squares.numel() and len(set(places.values())) == 1:
        total = squares.sum() * next(iter(places.values()))
    else:
        total = torch.stack([squares[place] * number for place, number in places.items()]).sum()
    return network.scale**2 * total


@lru_cache(maxsize=512)
def _contraction(network: Network, shapes: tuple[tuple[int, ...], ...]) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """Return the function that contracts a network with itself; its order is searched once for factors of one shape."""
    equation, kept = contraction(network)
    return opt_einsum.contract_expression(equation, *shapes, *shapes), kept


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
