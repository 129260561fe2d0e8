"""Products of factors alone, apart from the rest of a plan: the steps that make them, and the network that is left."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tnadapt._frozen import FrozenMap
from tnadapt._language import Factor, Network, Node, Term
from tnadapt._planning.plan import Plan, Step
from tnadapt.initializers import normal

__all__ = ["FactorProducts", "part_products"]


@dataclass(frozen=True)
class FactorProducts:
    """The products of factors alone by which a plan multiplies activations.

    Numbers below `len(nodes)` are nodes of the plan's network, in its order. Step n makes number len(nodes) + n.
    `made` maps the name of each product to its number. `network` is what is left: for one site, with a node for each
    product, in place of the nodes that only products read. `modes` has those of each product, bonds first.
    """

    nodes: tuple[str, ...]
    steps: tuple[Step, ...]
    made: Mapping[str, int]
    modes: Mapping[str, tuple[str, ...]]
    network: Network

    def leaves(self, number: int) -> frozenset[int]:
        """Return the numbers of the nodes that a product is made of."""
        if number < len(self.nodes):
            return frozenset({number})
        step = self.steps[number - len(self.nodes)]
        return self.leaves(step.left) | self.leaves(step.right)


def part_products(order: Plan) -> FactorProducts | None:
    """Part the products of factors alone from a plan for "apply"; None if it makes none.

    None too where it convolves, and where it reads starting values, which must cancel to the last bit.
    """
    network, first = order.network, len(order.operands) - len(order.network.nodes)
    if order.convolutions or any(node.at_start for node in network.nodes.values()):
        return None
    known = len(order.operands)
    kept = {n for n, step in enumerate(order.steps, known) if step.when != "call"}
    read = [side for step in order.steps if step.when == "call" for side in (step.left, step.right)]
    bounds = [number for number in dict.fromkeys(read) if number in kept]
    if not bounds:
        return None
    below = sorted({one for number in bounds for one in _steps_below(order, number)})
    place = {number: number - first for number in range(first, known)}
    place |= {number: len(network.nodes) + n for n, number in enumerate(below)}
    steps = tuple(_renumbered(order.steps[number - known], place) for number in below)
    outer = (*network.out_modes, *network.in_modes)
    names = {number: f"%{place[number]}" for number in bounds}
    modes = {names[number]: _bonds_first(order.modes(number), outer) for number in bounds}
    terms = [
        Term(sign, tuple(sorted(names.get(one) or order.operands[one] for one in _ends(order, result, kept, first))))
        for sign, result in order.results
    ]
    left = {name for term in terms for name in term.nodes if name not in modes}
    made = {names[number]: place[number] for number in bounds}
    trained = {name: network.is_trained(name) for name in left}
    found = FactorProducts(tuple(network.nodes), steps, FrozenMap(made), FrozenMap(modes), network)
    for name, number in made.items():
        trained[name] = any(network.is_trained(found.nodes[leaf]) for leaf in found.leaves(number))
    modes |= {name: network.local_modes(name) for name in left}
    rest = _network(network, modes, trained, terms)
    return FactorProducts(found.nodes, steps, found.made, found.modes, rest)


def _network(
    network: Network, modes: Mapping[str, tuple[str, ...]], trained: Mapping[str, bool], terms: Sequence[Term]
) -> Network:
    """Return a network for one site of these nodes, each a factor of its own."""
    return Network(
        axes=network.axes,
        over=(),
        factors={name: Factor(own, normal(), trainable=trained[name]) for name, own in modes.items()},
        sizes=network.sizes,
        scale=network.scale,
        nodes={name: Node(name, own) for name, own in modes.items()},
        terms=tuple(terms),
    )


def _steps_below(order: Plan, number: int) -> Iterator[int]:
    """Yield the numbers of the steps that make a product, its own included."""
    if number < len(order.operands):
        return
    yield number
    step = order.steps[number - len(order.operands)]
    for side in (step.left, step.right):
        yield from _steps_below(order, side)


def _renumbered(step: Step, place: Mapping[int, int]) -> Step:
    return Step(place[step.left], place[step.right], step.modes, step.cost, step.when)


def _ends(order: Plan, number: int, kept: set[int], first: int) -> Iterator[int]:
    """Yield the nodes and the products of factors that make a result together with x."""
    if number in kept or number < len(order.operands):
        if number >= first:
            yield number
        return
    step = order.steps[number - len(order.operands)]
    for side in (step.left, step.right):
        yield from _ends(order, side, kept, first)


def _bonds_first(modes: Sequence[str], outer: Sequence[str]) -> tuple[str, ...]:
    """Order modes so that the long ones, of the weight, lie innermost."""
    return (*(mode for mode in modes if mode not in outer), *(mode for mode in outer if mode in modes))
