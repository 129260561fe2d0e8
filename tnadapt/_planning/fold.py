"""What folding an update into its weight costs beside the host's own product, and making the update first."""

from tnadapt._language import Network
from tnadapt._planning.cost import Cost

__all__: list[str] = []


def dense_costs(network: Network, tokens: int, *, training: bool, x_needs_grad: bool) -> tuple[Cost, Cost]:
    """Return the cost of x times a dense update, and what folding adds to the host: the gradient of the weight."""
    outer, inner = (network.volume(modes) for modes in (network.out_modes, network.in_modes))
    flops, entries = 2 * tokens * outer * inner, outer * inner
    needs_weight = training and any(factor.trainable for factor in network.factors.values())
    products = needs_weight + (training and x_needs_grad)
    moved = tokens * (outer + inner) + entries
    whole = Cost(flops, flops * products, needs_weight * tokens * inner, 0, moved * (1 + products))
    added = Cost(0, flops * needs_weight, needs_weight * tokens * inner, 0, 3 * entries + moved * needs_weight)
    return whole, added
