"""The product of x and the host's weight, which the layer has made anyway: an operand in place of both."""

from collections.abc import Sequence

from tnadapt._language import Network

__all__ = ["find_product"]

Modes = tuple[str, ...]


def find_product(network: Network, names: Sequence[str]) -> str | None:
    """Return the node of a term that is the host's weight and sums with x alone over all in modes; None if none is."""
    ins, outs = {*network.in_modes}, len(network.out_modes)
    for name in names:
        node = network.nodes[name]
        if network.factors[node.factor].init.kind != "host" or node.modes[outs:] != network.in_modes:
            continue
        others = {mode for other in names if other != name for mode in network.nodes[other].modes}
        if not ins & (others | {*node.modes[:outs]}):
            return name
    return None


def product_name(node: str) -> str:
    """Return the name of the product of x and this node among the operands of a plan: no factor can have it."""
    return f"({node} x)"


def product_modes(network: Network, node: str) -> Modes:
    """Return the modes of the product of x and this node, without the tokens."""
    return network.nodes[node].modes[: len(network.out_modes)]
