"""What a picture shows of a spec or a network."""

from dataclasses import replace

from tnadapt import AdapterSpec
from tnadapt.binding import Factor, Network


def shown(of: AdapterSpec | Network) -> dict[str, Factor]:
    """The factors of the first term by name, under the modes that they have there; starting values are frozen."""
    is_spec = isinstance(of, AdapterSpec)
    term = (of.sum if is_spec else of.terms)[0]
    factors = {**of.arrays, **of.hosts} if is_spec else of.factors
    nodes = {name: of.nodes[name] for name in of.nodes if name in term.nodes}
    return {
        name: replace(
            factors[node.factor], modes=node.modes, trainable=factors[node.factor].trainable and not node.at_start
        )
        for name, node in nodes.items()
    }
