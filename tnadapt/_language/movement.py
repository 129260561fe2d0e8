"""How far the first step of Adam moves an update, from a spec and its sizes: no values are needed."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from itertools import product
from operator import mul
from typing import Protocol

from tnadapt._language.factor import Factor
from tnadapt._language.initializer import ones
from tnadapt._language.network import Network
from tnadapt._language.scale import Scale
from tnadapt._language.terms import Node, Pull

__all__ = [
    "Monomial",
    "Move",
    "find_unit_faults",
    "gain_of",
    "mean_square",
    "moves_of",
    "node_step",
    "total_of",
    "unknown_starts",
]

ROUNDING = 1e-10  # of a sum of squares, relative to its terms: what is left of those that cancel
FOUR = 4
MOST = 200  # ways to pair the nodes of a term
Symbol = tuple[str, int]
Way = tuple[float, list[list[int]]]
Sizes = Mapping[str, int]


class Spec(Protocol):
    """A valid spec, as far as its first step follows from it."""

    @property
    def nodes(self) -> Mapping[str, Node]: ...
    @property
    def arrays(self) -> Mapping[str, Factor]: ...
    @property
    def hosts(self) -> Mapping[str, Factor]: ...
    @property
    def pulls(self) -> Mapping[str, tuple[Pull, ...]]: ...
    @property
    def magnitude(self) -> str: ...
    @property
    def scale(self) -> Scale: ...


@dataclass(frozen=True)
class Monomial:
    """A number times sizes over sizes, each with the text that stands for it; what is above and below cancels."""

    number: float = 1.0
    above: tuple[Symbol, ...] = ()
    below: tuple[Symbol, ...] = ()

    @property
    def value(self) -> float:
        """The number that it is; the sizes are multiplied exactly."""
        return self.number * (_volume(self.above) / _volume(self.below))

    def __mul__(self, other: "Monomial") -> "Monomial":
        """Multiply, and cancel what is above and below."""
        below, above = [*self.below, *other.below], []
        for symbol in (*self.above, *other.above):
            if symbol in below:
                below.remove(symbol)
            else:
                above.append(symbol)
        return Monomial(self.number * other.number, tuple(sorted(above)), tuple(sorted(below)))

    def __str__(self) -> str:
        """Return a text such as r / (3 in)."""
        number = Fraction(self.number).limit_denominator(1000) if math.isfinite(self.number) else Fraction(0)
        is_short = math.isclose(number, self.number, rel_tol=1e-12)
        top, bottom = (number.numerator, number.denominator) if is_short else (f"{self.number:.4g}", 1)
        upper = [*([str(top)] if top != 1 else []), *_powers(self.above)] or ["1"]
        lower = [*([str(bottom)] if bottom != 1 else []), *_powers(self.below)]
        return " ".join(upper) + (f" / ({' '.join(lower)})" if len(lower) > 1 else f" / {lower[0]}" if lower else "")


@dataclass(frozen=True)
class Move:
    """What the first step of one factor adds to the mean square of an entry of the update, without the scale.

    It is per square of the learning rate, for signs that are independent. `pull` says in which term; None for a
    magnitude, whose step the scale does not multiply. `is_mixed` if it is the product of that pull and another one.
    """

    factor: str
    pull: Pull | None
    size: Monomial
    is_mixed: bool = False


def moves_of(
    spec: Spec, network: Network, made_for: Callable[[str], Sizes], known: Mapping[str, float] | None = None
) -> tuple[Move, ...]:
    """Return the moves of every factor that has a gradient at the start, those of a factor one after another.

    Args:
        spec: a spec for which `unknown_starts` finds nothing, unless `known` has the values.
        network: its network at some sites.
        made_for: returns the sizes that the array of a factor is made for, the largest ones if groups share it.
        known: the mean square of the entries of a factor, where it is not to be derived.
    """
    found = [
        Move(name, one, size, is_mixed=other is not one)
        for name, pulls in spec.pulls.items()
        for place, one in enumerate(pulls)
        for other in pulls[place:]
        for size in _product_of(network, one, other, made_for, known or {})
    ]
    if spec.magnitude:
        found.append(Move(spec.magnitude, None, Monomial(1.0, (), _symbols(network.in_modes, network.sizes))))
    return tuple(found)


def gain_of(spec: Spec, network: Network, made_for: Callable[[str], Sizes]) -> float:
    """Return by how much a first step of rate 1 changes what a weight gives for an x of RMS 1, at a scale of 1.

    The step of a magnitude is not in it, since no scale multiplies it. Files depend on every bit of this number.
    """
    sizes = [move.size.value for move in moves_of(spec, network, made_for) if move.pull]
    return math.sqrt(total_of(sizes) * network.volume(network.in_modes))


def total_of(sizes: Collection[float]) -> float:
    """Return the sum of parts of a mean square, which may be negative; 0 if only their rounding is left."""
    total, most = sum(sizes) if math.inf in sizes else math.fsum(sizes), max(map(abs, sizes), default=0.0)
    return total if total > ROUNDING * most else 0.0


def unknown_starts(spec: Spec) -> list[str]:
    """Return the factors in the terms whose starting values are read from the host, so that their size is not known."""
    factors = {**spec.arrays, **spec.hosts}
    used = dict.fromkeys(node.factor for node in spec.nodes.values())
    return [name for name in used if factors[name].init.is_read or factors[name].init.is_host]


def find_unit_faults(spec: Spec) -> list[str]:
    """Find why a valid spec cannot have the scale `unit`: nothing moves, or by how much is not known."""
    if not spec.scale.is_unit:
        return []
    if not any(spec.pulls.values()):
        return ["scale: expected another rule than unit, since no factor of a term has a gradient at the start"]
    return [
        f"scale: expected another rule than unit, since {name!r} is read from the host's weights, so that its size is "
        "not known here"
        for name in unknown_starts(spec)
    ]


def mean_square(factor: Factor, network: Network, made_for: Sizes) -> Monomial:
    """Return the mean square of the entries of a node at the start, of the part that a network reads.

    `made_for` has the sizes that the array is made for. The start must not be read from the host.
    """
    last = Monomial(1.0, (), _symbols(factor.modes[-1:], network.sizes))
    if factor.map or factor.init.kind == "rotary":  # orthogonal matrices; the amount of the latter is its base
        return last
    square = Monomial(factor.init.amount * factor.init.amount, (), _symbols(factor.init.fan, made_for))
    inner = tuple(mode for mode in factor.modes if mode not in network.over)
    match factor.init.kind:
        case "uniform":
            return square * Monomial(1 / 3)
        case "orthogonal" if inner:
            return square * Monomial(1.0, (), (_largest([inner[:1], inner[1:]], made_for),))
        case "identity" if inner:
            read, inner = network.sizes, factor.modes if len(inner) == 1 else inner
            least = min(read[mode] for mode in inner)
            gone = next(mode for mode in inner if read[mode] == least)
            return square * Monomial(1.0, (), _symbols((mode for mode in inner if mode != gone), read))
        case "cyclic":
            return square * Monomial(1.0, (), _symbols(factor.modes[:1], made_for))
        case _:
            return square


def node_step(factor: Factor, network: Network, made_for: Sizes) -> Monomial:
    """Return the mean square of what a unit step of random signs adds to a node: 1 without a map."""
    size = network.sizes[factor.modes[-1]] if factor.map else 1
    square = mean_square(Factor(factor.held, factor.init, factor.trainable), network, made_for).value
    match factor.map:
        case "rotation":  # half of the angle
            return Monomial(1 / 8)
        case "householder":
            return Monomial(8 * (1 - 1 / size) / (size**2 * square)) if square else Monomial(0.0)
        case "cayley":  # less away from 0, where 1 + S is larger: S has eigenvalues of a half circle
            return Monomial(8 * (1 - 1 / size) * (2 / (1 + math.sqrt(1 + 8 * size * square))) ** 2)
        case _:
            return Monomial()


def _product_of(
    network: Network, one: Pull, other: Pull, made_for: Callable[[str], Sizes], known: Mapping[str, float]
) -> Iterator[Monomial]:
    """Yield the parts of the mean product of two pulls of a factor, twice it if they are not the same one.

    Entries that are drawn are independent, so the nodes of a factor have to be paired, over both pulls; those of a pair
    have equal indices. A constant needs no partner, and an identity makes its own two indices equal. What is left is
    summed over each bond, and averaged over the entries of the weight.
    """
    own = network.nodes[one.node], network.nodes[other.node]
    factor = network.factors[own[0].factor]
    joined = Joined(network)
    joined.join(own[0].modes, 0, own[1].modes, 1)
    times = float(one.times * other.times * (1 if one is other else 2))
    rest = [Monomial(times), node_step(factor, network, made_for(own[0].factor))]
    drawn: dict[str, list[tuple[tuple[str, ...], int]]] = {}
    for side, pull in enumerate((one, other)):
        for node in (network.nodes[name] for name in sorted(pull.others)):
            joined.see(node.modes, side)
            factor = network.factors[node.factor]
            if _is_constant(factor):
                square = mean_square(factor, network, made_for(node.factor))
                if one is not other:
                    rest.append(Monomial(math.copysign(math.sqrt(square.value), factor.init.amount)))
                elif side == 0:
                    rest.append(square)
            elif _is_square_identity(factor, network):
                joined.join(node.modes[-2:-1], side, node.modes[-1:], side)
            else:
                drawn.setdefault(node.factor, []).append((node.modes, side))
    for name, nodes in drawn.items():
        square = Monomial(known[name]) if name in known else mean_square(network.factors[name], network, made_for(name))
        rest += [square] * (len(nodes) // 2)
    ways = [_ways(len(nodes), _excess(network.factors[name])) for name, nodes in drawn.items()]
    if math.prod(number for nodes in drawn.values() for number in range(len(nodes) - 1, 0, -2)) > MOST:
        ways = [_first_way([side for _, side in nodes]) for nodes in drawn.values()]
    for way in product(*ways):
        now, number = joined.copy(), 1.0
        for nodes, (weight, blocks) in zip(drawn.values(), way, strict=True):
            number *= weight
            for first, place in ((block[0], place) for block in blocks for place in block[1:]):
                now.join(*nodes[first], *nodes[place])
        yield reduce(mul, [Monomial(number), *rest, now.volume()])


def _ways(number: int, excess: float) -> Iterator[Way]:
    """Yield the ways to pair numbered nodes of one factor; and four in one block, for the excess of the kurtosis."""
    yield from ((1.0, pairs) for pairs in _pairings(list(range(number))))
    if number == FOUR and excess:
        yield excess, [[0, 1, 2, 3]]


def _first_way(sides: list[int]) -> Iterator[Way]:
    """Yield the way that pairs each node of a copy with itself in the other; others are smaller by a bond's size."""
    half = sides.count(0)
    if half == sides.count(1):
        yield 1.0, [[place, half + place] for place in range(half)]


def _excess(factor: Factor) -> float:
    """Return by how much the mean fourth power of an entry exceeds 3, over its squared mean square."""
    return -1.2 if factor.init.kind == "uniform" and not factor.map else 0.0


def _pairings(places: list[int]) -> Iterator[list[list[int]]]:
    if not places:
        yield []
    for partner in places[1:]:
        rest = [place for place in places[1:] if place != partner]
        yield from ([[places[0], partner], *pairs] for pairs in _pairings(rest))


class Joined:
    """Which modes of two copies of a term have equal indices. The copies share the modes of weight and sites."""

    def __init__(self, network: Network) -> None:
        """Begin with no modes."""
        self.sizes = network.sizes
        self.outer = {*network.over, *network.out_modes, *network.in_modes}
        self.root: dict[tuple[str, int], tuple[str, int]] = {}

    def copy(self) -> "Joined":
        """Return a copy that can be joined further."""
        other = copy(self)
        other.root = dict(self.root)
        return other

    def see(self, modes: Iterable[str], side: int) -> None:
        """Take up the modes of a node of a copy, 0 or 1."""
        for mode in modes:
            key = (mode, 0 if mode in self.outer else side)
            self.root.setdefault(key, key)

    def join(self, modes: tuple[str, ...], side: int, others: tuple[str, ...], other_side: int) -> None:
        """Make the indices along modes of a copy equal to those along as many others of a copy."""
        self.see(modes, side)
        self.see(others, other_side)
        for mode, other in zip(modes, others, strict=True):
            one, two = self._root(mode, side), self._root(other, other_side)
            self.root[max(one, two)] = min(one, two)

    def _root(self, mode: str, side: int) -> tuple[str, int]:
        key = (mode, 0 if mode in self.outer else side)
        while self.root[key] != key:
            key = self.root[key]
        return key

    def volume(self) -> Monomial:
        """Return over how many indices bonds are summed, and how rare entries are where modes of a weight are equal."""
        classes: dict[tuple[str, int], list[str]] = {}
        for mode, side in self.root:
            classes.setdefault(self._root(mode, side), []).append(mode)
        above, below = [], []
        for modes in classes.values():
            here = [mode for mode in modes if mode in self.outer]
            above += [] if here else modes[:1]
            below += here[1:]
        return Monomial(1.0, _symbols(sorted(above), self.sizes), _symbols(sorted(below), self.sizes))


def _is_square_identity(factor: Factor, network: Network) -> bool:
    return factor.is_identity and len({network.sizes[mode] for mode in factor.modes[-2:]}) == 1


def _is_constant(factor: Factor) -> bool:
    return not factor.map and factor.init.kind == ones().kind


def _symbols(modes: Iterable[str], sizes: Sizes) -> tuple[Symbol, ...]:
    return tuple((mode, sizes[mode]) for mode in modes if sizes[mode] != 1)


def _largest(sides: Iterable[tuple[str, ...]], sizes: Sizes) -> Symbol:
    """Return the largest of some products of sizes."""
    volumes = {" ".join(side): math.prod(sizes[mode] for mode in side) for side in sides if side}
    if len({*volumes.values()}) == 1:
        return next(iter(volumes.items()))
    return f"max({', '.join(volumes)})", max(volumes.values())


def _volume(symbols: Iterable[Symbol]) -> int:
    return math.prod(size for _, size in symbols)


def _powers(symbols: Iterable[Symbol]) -> list[str]:
    times: dict[str, int] = {}
    for name, _ in symbols:
        times[name] = times.get(name, 0) + 1
    return [name if number == 1 else f"{name}^{number}" for name, number in times.items()]
