"""Terms: an update is a signed sum of contractions, each of some nodes; a node is a factor under names of modes."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tnadapt._language.factor import Factor, Same

__all__: list[str] = []

START = ":start"
"""The end of the name of what holds starting values. The name of a factor cannot contain it."""
ROUNDS = 4  # of telling bonds apart by their neighbours; the factors at their ends nearly always do
Modes = tuple[str, ...]


@dataclass(frozen=True, order=True)
class Node:
    """One factor in a term: the name of its array, its modes there, and whether its starting values are meant."""

    factor: str
    modes: Modes
    at_start: bool = False


@dataclass(frozen=True)
class Term:
    """A contraction of nodes, given by name, that is added to the update (sign 1) or subtracted from it (sign -1)."""

    sign: int
    nodes: Modes

    def __str__(self) -> str:
        """Return a text such as: - B0 A0."""
        return f"{'- ' if self.sign < 0 else ''}{' '.join(self.nodes)}"


def words_of(term: str) -> tuple[int, Modes]:
    """Return the sign and the names of a term such as "- B0 A0"."""
    words = term.strip()
    signed = words[:1] in ("+", "-")
    return -1 if words[:1] == "-" else 1, tuple(words[signed:].split())


def arrays_of(factors: Mapping[str, Factor | Same]) -> dict[str, Factor]:
    """Return the factors that have an array of their own."""
    return {name: factor for name, factor in factors.items() if isinstance(factor, Factor)}


def nodes_of(factors: Mapping[str, Factor | Same]) -> dict[str, Node]:
    """Return the node of every factor and of every copy. The start of a frozen factor is the factor itself.

    A magnitude has none, since it multiplies the sum of the weight and the update.
    """
    arrays = arrays_of(factors)
    found = {}
    for name, one in factors.items():
        if isinstance(one, Factor):
            if one.init.is_magnitude:
                continue
            found[name] = Node(name, one.modes)
        else:
            source = arrays[one.factor]
            found[name] = Node(
                one.factor, source.modes if one.modes is None else one.modes, one.at_start and source.trainable
            )
    return found


def terms_of(terms: Sequence[str], factors: Iterable[str]) -> tuple[Term, ...]:
    """Return the terms; one of all factors if none is written."""
    if not terms:
        return (Term(1, tuple(sorted(factors))),)
    return tuple(Term(sign, tuple(sorted(names))) for sign, names in map(words_of, terms))


@dataclass(frozen=True)
class Pull:
    """A gradient that a factor has at the start: at its node `node` of a term, which contracts it with `others`.

    `times` is the number of such places with equal gradients, by their signs: 2 if two terms have the same.
    """

    node: str
    others: Modes
    times: int


@dataclass(frozen=True)
class Sum:
    """The terms of an update, with its nodes and factors.

    `outer` has the modes of the weight and of the sites, and `tied` the modes whose sizes are those of others.
    """

    terms: Sequence[Term]
    nodes: Mapping[str, Node]
    factors: Mapping[str, Factor]
    outer: Collection[str]
    tied: Mapping[str, str]

    @property
    def starts_at_zero(self) -> bool:
        """Whether the update is 0 at the starting values: a term with a zero factor is, and others may cancel."""
        left: Counter[object] = Counter()
        for term in self.terms:
            if not any(self._is_zero(name) for name in term.nodes):
                left[self._alike(term.nodes)] += term.sign
        return not any(left.values())

    @property
    def moving(self) -> tuple[str, ...]:
        """The trainable factors that have a gradient at the starting values, for a generic loss."""
        return tuple(name for name, pulls in self.pulls.items() if pulls)

    @property
    def pulls(self) -> dict[str, tuple[Pull, ...]]:
        """The gradients of each trainable factor at the starting values; equal ones of several terms are one.

        A factor has one if a term is not 0 without it, unless the gradients of several terms cancel.
        """
        found: dict[str, dict[object, Pull]] = {name: {} for name, one in self.factors.items() if one.trainable}
        for term in self.terms:
            for name in term.nodes:
                node, others = self.nodes[name], tuple(other for other in term.nodes if other != name)
                is_trained = node.factor in found and not node.at_start
                if is_trained and not any(self._is_zero(other) for other in others):
                    alike = self._alike(others, node.modes)
                    first = found[node.factor].get(alike, Pull(name, others, 0))
                    found[node.factor][alike] = Pull(first.node, first.others, first.times + term.sign)
        return {name: tuple(pull for pull in pulls.values() if pull.times) for name, pulls in found.items()}

    def _is_zero(self, name: str) -> bool:
        return self.factors[self.nodes[name].factor].is_zero

    def _alike(self, names: Iterable[str], hole: Modes = ()) -> object:
        """Return what products have in common whose nodes have equal values at the start, whatever their bonds' names.

        A factor that starts as the identity joins its last two modes into one. `hole` has the modes of a factor that is
        left out.
        """
        joined: dict[str, str] = {}
        left = [("", hole)]
        for node in (self.nodes[name] for name in names):
            if not self._is_identity(node):
                left.append((node.factor, node.modes))
                continue
            first, second = sorted((joined.get(m, m) for m in node.modes[-2:]), key=lambda m: m not in self.outer)
            if second in self.outer:
                left.append((node.factor, node.modes))
            else:
                joined = {mode: first if known == second else known for mode, known in joined.items()}
                joined[second] = first
        return renamed([(name, tuple(joined.get(mode, mode) for mode in modes)) for name, modes in left], self.outer)

    def _is_identity(self, node: Node) -> bool:
        """Return whether a node starts as a square identity: one that is not drops rows or columns."""
        factor = self.factors[node.factor]
        return factor.is_identity and (
            bool(factor.map) or len({self.tied.get(mode, mode) for mode in node.modes[-2:]}) == 1
        )


def renamed(nodes: Iterable[tuple[str, Modes]], outer: Collection[str]) -> object:
    """Return what equal contractions have in common: their nodes, with numbers for bonds that their places tell apart.

    Bonds that the places do not tell apart keep their names.
    """
    parts = list(nodes)
    bonds = {mode for _, modes in parts for mode in modes if mode not in outer}
    found = dict.fromkeys(bonds, 0)
    for _ in range(ROUNDS):
        if len({*found.values()}) == len(bonds):
            break
        seen: dict[str, list[int]] = {mode: [] for mode in bonds}
        for name, modes in parts:
            known = tuple(found.get(mode, mode) for mode in modes)
            for place, mode in enumerate(modes):
                if mode in bonds:
                    seen[mode].append(hash((name, place, known)))
        found = {mode: hash(tuple(sorted(places))) for mode, places in seen.items()}
    times = Counter(found.values())
    names: dict[str, object] = {mode: n if times[n] == 1 else mode for mode, n in found.items()}
    return frozenset(Counter((name, tuple(names.get(mode, mode) for mode in modes)) for name, modes in parts).items())


def tied_bonds(
    arrays: Mapping[str, Factor], nodes: Mapping[str, Node], likes: Mapping[str, str], first: Collection[str]
) -> dict[str, str]:
    """Return bond -> the mode whose size it has: by a rule, or since a copy gives an axis of a factor a second name.

    `likes` has the rules. Of modes of equal size, the others have that of the one in `first`, or of the one that is no
    second name.
    """
    pairs = list(likes.items())
    for node in nodes.values():
        own_modes = arrays[node.factor].modes  # of an invalid copy not as many
        pairs += [(mine, own) for mine, own in zip(node.modes, own_modes, strict=False) if mine != own]
    alike: dict[str, set[str]] = {}
    for one, other in pairs:
        joined = alike.get(one, {one}) | alike.get(other, {other})
        alike |= dict.fromkeys(joined, joined)
    second = {mine for mine, _ in pairs}
    known = {
        mode: min(joined, key=lambda one: (one not in first, one in second, one)) for mode, joined in alike.items()
    }
    return {mode: found for mode, found in sorted(known.items()) if found != mode}


def join_modes(
    factor: str, nodes: Mapping[str, Node], terms: Sequence[Term], outer: Collection[str]
) -> tuple[dict[str, Node], tuple[Term, ...]] | None:
    """Return the nodes and the terms without a square identity, whose two modes become one; None if that cannot be.

    It cannot be where both modes are outer, where a term has one of them without the identity, and where a node would
    have a mode twice.
    """
    left, terms = dict(nodes), tuple(terms)
    for name in [name for name, node in nodes.items() if node.factor == factor]:
        kept, gone = sorted(left.pop(name).modes, key=lambda mode: mode not in outer)
        having = {other for other, node in left.items() if gone in node.modes}
        if gone in outer or any(kept in left[other].modes for other in having):
            return None
        if any(having & {*term.nodes} and name not in term.nodes for term in terms):
            return None
        for other in having:
            node = left[other]
            left[other] = Node(node.factor, tuple(kept if m == gone else m for m in node.modes), node.at_start)
        terms = tuple(Term(term.sign, tuple(one for one in term.nodes if one != name)) for term in terms)
    return left, terms


def less_start(
    arrays: Mapping[str, Factor], nodes: Mapping[str, Node], terms: Sequence[Term]
) -> tuple[dict[str, Node], tuple[Term, ...]]:
    """Return the nodes and the terms of an update from which its starting value is subtracted, without zero terms."""
    names = {
        name: name + START if arrays[node.factor].trainable and not node.at_start else name
        for name, node in nodes.items()
    }
    starts = {new: Node(nodes[old].factor, nodes[old].modes, at_start=True) for old, new in names.items() if new != old}
    mirrored = [
        Term(-term.sign, tuple(sorted(names[name] for name in term.nodes)))
        for term in terms
        if not any(arrays[nodes[name].factor].is_zero for name in term.nodes)
    ]
    return dict(nodes) | starts, (*terms, *mirrored)
