"""Frobenius norms of factors and of updates, without a dense update where the network allows it."""

import math
from collections.abc import Mapping

import opt_einsum
import torch
from torch import Tensor

from tnadapt import Adapter, Group
from tnadapt_torch._site import SiteHook

__all__: list[str] = []


def norms(adapter: Adapter, params: Mapping[str, Tensor], hooks: Mapping[str, SiteHook]) -> dict[str, float]:
    """As `AdapterState.norms` says; `hooks` are those of the sites by path."""
    wide = {name: _wide(value) for name, value in params.items()}
    squares = {name: 0.0 for name, factor in adapter.spec.factors.items() if factor.trainable}
    total = 0.0
    for group in adapter.groups:
        for name in squares:
            squares[name] += wide[adapter.slot_name(group, name)].square().sum().item()
        if group.network.centered:  # the square of a small difference of two updates would be lost in their products
            like = next(iter(wide.values()))
            total += sum(hooks[site.path].delta(like).square().sum().item() for site in group.sites)
        else:
            total += _square(adapter, group, wide)
    return {name: math.sqrt(square) for name, square in squares.items()} | {"dW": math.sqrt(max(total, 0.0))}


def _square(adapter: Adapter, group: Group, wide: Mapping[str, Tensor]) -> float:
    """Sum over the sites of a group of ||dW||^2: the network contracted with itself, its bonds doubled."""
    network = group.network
    letters = {mode: opt_einsum.get_symbol(number) for number, mode in enumerate(network.sizes)}
    outer = {*network.over, *network.out_modes, *network.in_modes}
    twins = {mode: mode if mode in outer else f"{mode}'" for mode in network.sizes}
    letters |= {
        twins[mode]: opt_einsum.get_symbol(len(letters) + number)
        for number, mode in enumerate(network.sizes)
        if mode not in outer
    }
    parts = [wide[adapter.slot_name(group, name)][tuple(map(slice, network.shape(name)))] for name in network.factors]
    terms = [
        "".join(letters[names[mode]] for mode in factor.modes)
        for names in ({mode: mode for mode in network.sizes}, twins)
        for factor in network.factors.values()
    ]
    carried = {mode for factor in network.factors.values() for mode in factor.modes}
    kept = [mode for mode in network.over if mode in carried]
    equation = f"{','.join(terms)}->{''.join(letters[mode] for mode in kept)}"
    squares = opt_einsum.contract(equation, *parts, *parts)
    places = [group.index(site) for site in group.sites]
    chosen = [squares[tuple(place[mode] for mode in kept)] for place in places]
    return network.scale**2 * torch.stack(chosen).sum().item()


def _wide(value: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor  # noqa: PLC0415  (a second, which `import tnadapt_torch` need not take)

    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach().double()
