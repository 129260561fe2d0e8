"""What a picture shows of a spec or a network."""

from dataclasses import replace

from tnadapt import AdapterSpec
from tnadapt._language import Term
from tnadapt.binding import Factor, Network


def shown(of: AdapterSpec | Network) -> dict[str, Factor]:
    """The factors of all terms by name, under the modes that they have there; starting values are frozen.

    Terms that subtract the start of another one are not drawn.
    """
    is_spec = isinstance(of, AdapterSpec)
    factors = {**of.arrays, **of.hosts} if is_spec else of.factors
    drawn = {name for term in shown_terms(of) for name in term.nodes}
    nodes = {name: of.nodes[name] for name in of.nodes if name in drawn}
    return {
        name: replace(
            factors[node.factor], modes=node.modes, trainable=factors[node.factor].trainable and not node.at_start
        )
        for name, node in nodes.items()
    }


def shown_terms(of: AdapterSpec | Network) -> list[Term]:
    """The terms that are drawn: of one and the same with some starting values and the opposite sign, the first."""
    found: list[tuple[int, list[object], Term]] = []
    for term in of.sum if isinstance(of, AdapterSpec) else of.terms:
        key = sorted((of.nodes[name].factor, of.nodes[name].modes) for name in term.nodes)
        has_start = any(of.nodes[name].at_start for name in term.nodes)
        if not (has_start and any(known == key and sign == -term.sign for sign, known, _ in found)):
            found.append((term.sign, key, term))
    return [term for _, _, term in found]
