"""Networks for the lengths of the rows of a weight with its update, so that the update need not be made."""

from dataclasses import dataclass, replace
from functools import lru_cache

from tnadapt._language import Factor, Network, Node, Term, host
from tnadapt._planning import plan

__all__ = ["RowProducts", "row_products"]

HOST, AGAIN = "(host)", "'"  # no factor and no mode can have such names


@dataclass(frozen=True)
class RowProducts:
    """Networks of one site whose answers have the out modes: row by row, 2 <W, dW> (`cross`) and |dW|^2 (`square`).

    With |W|^2 they add up to the square of the length of each row of W + dW. Their nodes have the names of the
    update's; `source` maps each to it, and to "(host)" for W. `pays` says whether both take less work than dW itself.
    """

    cross: Network
    square: Network
    pays: bool

    @staticmethod
    def source(node: str) -> str:
        """Return the name of the node of the update that a node reads, or "(host)"."""
        return node.removesuffix(AGAIN)


@lru_cache(maxsize=4096)
def row_products(network: Network) -> RowProducts:
    """Return the networks for the lengths of the rows of the weight with this update, before any magnitude."""
    axes = network.axes[:1]
    names = (*network.out_modes, *network.in_modes)
    cross = replace(
        network,
        axes=axes,
        factors={**network.factors, HOST: Factor(names, host(), trainable=False)},
        scale=2.0 * network.scale,
        nodes={**network.nodes, HOST: Node(HOST, names)},
        terms=tuple(Term(term.sign, (*term.nodes, HOST)) for term in network.terms),
    )
    outer = {*names, *network.over}
    again = {
        name + AGAIN: replace(node, modes=tuple(mode if mode in outer else mode + AGAIN for mode in node.modes))
        for name, node in network.nodes.items()
    }
    square = replace(
        network,
        axes=axes,
        sizes={**network.sizes, **{mode + AGAIN: size for mode, size in network.sizes.items() if mode not in outer}},
        scale=network.scale**2,
        nodes={**network.nodes, **again},
        terms=tuple(
            Term(one.sign * other.sign, (*one.nodes, *(name + AGAIN for name in other.nodes)))
            for one in network.terms
            for other in network.terms
        ),
    )
    parts = sum(plan(one, "delta", training=False).forward_flops for one in (cross, square))
    dense = plan(network, "delta", training=False).forward_flops + 3 * network.volume(names)
    return RowProducts(cross, square, parts < dense)
