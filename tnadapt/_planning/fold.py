"""What folding an update into its weight costs beside the host's own product, and making the update first."""

import math
from collections.abc import Sequence
from typing import Protocol

from tnadapt._language import Network
from tnadapt._planning.cost import Cost

__all__: list[str] = []


class Asked(Protocol):
    """What a plan is made for, and what it costs."""

    @property
    def network(self) -> Network: ...
    @property
    def tokens(self) -> int: ...
    @property
    def training(self) -> bool: ...
    @property
    def x_needs_grad(self) -> bool: ...
    @property
    def cost(self) -> Cost: ...


class Step(Protocol):
    """A step of a plan."""

    @property
    def left(self) -> int: ...
    @property
    def right(self) -> int: ...
    @property
    def modes(self) -> tuple[str, ...]: ...
    @property
    def when(self) -> str: ...


class Planned(Asked, Protocol):
    """A plan with its steps."""

    @property
    def operands(self) -> tuple[str, ...]: ...
    @property
    def steps(self) -> Sequence[Step]: ...
    def size(self, mode: str) -> int: ...


def dense_costs(order: Asked) -> tuple[Cost, Cost]:
    """Return the cost of x times a dense update, and what folding adds to the host: the gradient of the weight."""
    network, tokens = order.network, order.tokens
    outer, inner = (network.volume(modes) for modes in (network.out_modes, network.in_modes))
    flops, entries = 2 * tokens * outer * inner, outer * inner
    needs_weight = order.training and any(factor.trainable for factor in network.factors.values())
    products = needs_weight + (order.training and order.x_needs_grad)
    moved = tokens * (outer + inner) + entries
    whole = Cost(flops, flops * products, needs_weight * tokens * inner, 0, moved * (1 + products))
    added = Cost(0, flops * needs_weight, needs_weight * tokens * inner, 0, 3 * entries + moved * needs_weight)
    return whole, added


def factor_products(order: Planned) -> int:
    """Return the number of elements of the products of factors alone by which activations are multiplied."""
    known = len(order.operands)
    sides = {side for step in order.steps if step.when == "call" for side in (step.left, step.right)}
    made = [order.steps[number - known] for number in sides if number >= known]
    return sum(math.prod(map(order.size, step.modes)) for step in made if step.when != "call")


def keeps_little(order: Planned) -> bool:
    """Return whether x (W + dW) keeps at most one x more for the backward pass than a plan does.

    It keeps x for the factors, and W + dW for the gradient of x; a plan keeps activations, and the products of
    factors by which it multiplies x. A matrix of the weight's size for each layer is much where tokens are few.
    """
    if not order.training:
        return True
    outer, inner = (order.network.volume(modes) for modes in (order.network.out_modes, order.network.in_modes))
    is_trained = any(factor.trainable for factor in order.network.factors.values())
    folded = is_trained * order.tokens * inner + order.x_needs_grad * outer * inner
    return folded <= order.cost.saved + order.x_needs_grad * factor_products(order) + order.tokens * inner
