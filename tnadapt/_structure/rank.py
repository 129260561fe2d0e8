"""The rank of an update: an upper bound from the structure of the network, and the rank at generic values."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np

from tnadapt._errors import PlanError, SiteError
from tnadapt._hosts import Site
from tnadapt._language import Adapter, Group, Network, Node, Term, expect_adapter
from tnadapt._signature import answers
from tnadapt._structure.maps import generic_node
from tnadapt._structure.modular import PRIME, Budget, Residues, contract, question_of, rank, residues
from tnadapt._values import delta, sample

__all__ = ["Cut", "generic_rank", "minimum_cut", "rank_bound"]

Modes = tuple[str, ...]
Vertex = str | tuple[str, str]

ROWS, COLUMNS = "(rows)", "(columns)"  # brackets: no mode and no factor can have these names
EMPTY = 1e-12  # an arc with less capacity left is full; logarithms of different products below 10^11 differ by more
WORK = 2**33  # flops of an evaluation: a few seconds
SKETCH = 32  # columns beyond the bound, for a rank in floating point


@dataclass(frozen=True)
class Cut:
    """A bound on a rank: cutting `modes` separates the rows from the columns in each of `times` contractions.

    The ranks of the terms of an update add up, unless the terms differ only on one side of the cut.
    """

    rank: int
    modes: Modes
    times: int = 1

    def __str__(self) -> str:
        """Return text such as "8 (cut p)"."""
        twice = f"{self.times} times " if self.times > 1 else ""
        return f"{self.rank:,} ({twice}cut {', '.join(self.modes) or 'nothing'})"


@dataclass(frozen=True)
class Parting:
    """A cut through some terms at once. `rows` has the nodes on the row side; the terms share all other nodes, or all.

    `shared_rows` says that the terms differ on the column side instead, so that it is the row side that they share.
    """

    terms: tuple[Term, ...]
    modes: Modes
    rank: int
    rows: frozenset[str]
    shared_rows: bool = False


@dataclass(frozen=True)
class Split:
    """A network at one site, or the stack of all its sites, with its open modes divided into rows and columns."""

    network: Network
    is_stack: bool
    rows: Modes

    @property
    def nodes(self) -> dict[str, Modes]:
        """The modes that each node has here."""
        net = self.network
        return {name: net.stack_modes(name) if self.is_stack else net.local_modes(name) for name in net.nodes}

    @property
    def open_modes(self) -> Modes:
        """The modes that are not summed."""
        return open_modes(self.network, is_stack=self.is_stack)

    @property
    def columns(self) -> Modes:
        """The open modes that are not rows."""
        return tuple(mode for mode in self.open_modes if mode not in self.rows)


def open_modes(network: Network, *, is_stack: bool) -> Modes:
    """Return the modes that are not summed: those of the weight, preceded by the site modes of a stack."""
    return (*(network.over if is_stack else ()), *network.out_modes, *network.in_modes)


def networks_at(adapter: Adapter, where: Site | Group | str | None) -> Iterator[tuple[Group, Site | None]]:
    """Find the networks at `where`: of one site, of a group as a stack (without a site), or by default of all groups.

    A site may be given by its path, and a group by its name. Raises SiteError if it does not belong to this adapter.
    """
    named = {group.name: group for group in adapter.groups}
    if where is None:
        yield from ((group, None) for group in adapter.groups)
    elif isinstance(where, Group) and where in adapter.groups:
        yield where, None
    elif isinstance(where, str) and where in named and all(site.path != where for site in adapter.sites):
        yield named[where], None
    elif isinstance(where, str) or (isinstance(where, Site) and adapter.find(where)[1] == where):
        yield adapter.find(where)
    else:
        raise SiteError(f"where: expected a site of this adapter, its path, or a group, got {where!r}.")


@answers(SiteError)
def rank_bound(
    adapter: Adapter, where: Site | Group | str | None = None, *, rows: Collection[str] | None = None
) -> Cut:
    """Return the minimum cut between the rows and columns of an update, an upper bound on its rank for any values.

    Cutting a mode costs its size, once, however many factors carry it (a minimum cut of the hypergraph).

    Args:
        adapter: the adapter whose updates are examined.
        where: a site; or a group, whose updates are then one tensor that also has the site modes. By default, the
            largest bound over all groups is returned.
        rows: the open modes that index the rows, such as ("layer",); by default the out modes.

    Raises:
        PlanError: rows that are not open modes, or a stack with holes in its grid of sites.
        SiteError: a site or a group that does not belong to this adapter.
    """
    expect_adapter(adapter, "rank_bound")
    splits = {_split(group, site, rows) for group, site in networks_at(adapter, where)}
    return max((_bound(split) for split in splits), key=lambda cut: cut.rank)


def minimum_cut(network: Network) -> Cut:
    """Return the bound on the rank of one site's update, given its network."""
    return _bound(Split(network, is_stack=False, rows=network.out_modes))


def partings(network: Network) -> tuple[Parting, ...]:
    """Return the cuts through the terms of one site's update, each through the terms that it serves at once."""
    return _partings(Split(network, is_stack=False, rows=network.out_modes))


@answers(SiteError)
def generic_rank(
    adapter: Adapter,
    where: Site | Group | str | None = None,
    *,
    rows: Collection[str] | None = None,
    frozen: Literal["generic", "drawn"] = "generic",
    seed: int = 0,
) -> int:
    """Return the rank of an update at random values, which is the rank at all values except a set of measure zero.

    It is computed exactly, modulo the prime p = 2^31 - 19; with a magnitude it is the bound. It is never too high, and
    too low with a probability of at most rank x (factors + 2) / p, by the degree of a minor of two sketches. A factor
    with a map counts by its degree: 2, or the size of a Cayley transform.

    Args:
        adapter: the adapter whose updates are examined.
        where: as for `rank_bound`; by default, the highest rank over all groups is returned.
        rows: as for `rank_bound`.
        frozen: "generic" for random frozen factors, or "drawn" for those of the adapter's seed. A drawn rank is that
            of one site, by its singular values in float64.
        seed: the seed of the random values.

    Raises:
        PlanError: as for `rank_bound`; "drawn" for a stack, or with rows; too much work.
        SiteError: a site or a group that does not belong to this adapter.
    """
    expect_adapter(adapter, "generic_rank")
    places = list(networks_at(adapter, where))
    if frozen not in ("generic", "drawn"):
        raise PlanError(f"generic_rank: expected frozen to be 'generic' or 'drawn', got {frozen!r}.")
    if frozen == "drawn":
        group, site = places[0]
        if site is None or rows is not None:
            came = "no site" if site is None else f"rows {tuple(rows or ())}"
            raise PlanError(
                f"generic_rank: expected one site and no rows for drawn factors, got {came}.\nPass a site, and no rows."
            )
        return _drawn_rank(adapter, group, site, np.random.default_rng(seed))
    splits = {_split(group, site, rows) for group, site in places}
    return max(_bound(split).rank if split.network.magnitude else _generic(split, seed) for split in splits)


def _split(group: Group, site: Site | None, rows: Collection[str] | None) -> Split:
    known = open_modes(group.network, is_stack=site is None)
    chosen = group.network.out_modes if rows is None else tuple(rows)
    if unknown := [mode for mode in chosen if mode not in known]:
        raise PlanError(
            f"rows: expected open modes {'of the stack' if site is None else 'of one site'}, got {unknown[0]!r}.\n"
            f"The open modes are {', '.join(known)}."
        )
    if site is None and group.places is not None:
        raise PlanError(
            f"{group.name or 'the group'}: expected a whole grid of sites along ({' '.join(group.network.over)}) for "
            f"the rank of a stack, got {len(group.sites)} sites, which leave holes.\nPass one site."
        )
    return Split(group.network, site is None, tuple(mode for mode in known if mode in chosen))


def _bound(split: Split) -> Cut:
    """Return the sum of the cuts of all terms, at most the number of rows or of columns."""
    if split.network.magnitude:  # it multiplies the rows of the host's weight as well
        modes = min((split.rows, split.columns), key=split.network.volume)
        return Cut(split.network.volume(modes), tuple(mode for mode in modes if split.network.sizes[mode] > 1))
    found = _partings(split)
    total = sum(one.rank for one in found)
    for modes in (split.rows, split.columns):
        if len(found) > 1 and split.network.volume(modes) <= total:
            return Cut(split.network.volume(modes), tuple(mode for mode in modes if split.network.sizes[mode] > 1))
    cut = dict.fromkeys(mode for one in found for mode in one.modes)
    is_alike = all({*one.modes} == {*cut} for one in found)
    return Cut(total, tuple(cut), len(found) if is_alike else 1)


@lru_cache(maxsize=4096)
def _partings(split: Split) -> tuple[Parting, ...]:
    """Cut each term by itself, then join the two groups of terms whose common cut saves most, as long as any does."""
    groups = [_part(split, (term,)) for term in split.network.terms]
    while len(groups) > 1:
        joined = {(one, other): _part(split, one.terms + other.terms) for one, other in combinations(groups, 2)}
        (one, other), best = min(joined.items(), key=lambda pair: pair[1].rank - sum(part.rank for part in pair[0]))
        if best.rank >= one.rank + other.rank:
            break
        groups = [best, *(part for part in groups if part not in (one, other))]
    return tuple(groups)


def _part(split: Split, terms: tuple[Term, ...]) -> Parting:
    """Return the minimum cut through terms, all of whose different nodes are on one side of it."""
    nodes, first = split.nodes, _first_names(split.network)
    of_terms = [[first[name] for name in term.nodes] for term in terms]
    used = dict.fromkeys(name for names in of_terms for name in names)  # in order: of equal cuts, the first is taken
    common = [name for name in used if len({names.count(name) for names in of_terms}) == 1]
    others = [name for name in used if name not in common]

    def parting(side: Vertex) -> Parting:
        carriers: dict[str, list[Vertex]] = {}
        for name in (*common, *others):
            for mode in nodes[name]:
                carriers.setdefault(mode, []).append(name if name in common else side)
        for mode in split.open_modes:
            carriers.setdefault(mode, []).append(ROWS if mode in split.rows else COLUMNS)
        modes, reached = _least_cut(carriers, split.network.sizes)
        rows = {name for name in common if name in reached} | (set(others) if side == ROWS else set())
        every = frozenset(name for name in nodes if first[name] in rows)
        return Parting(terms, modes, split.network.volume(modes), every, side == COLUMNS)

    return parting(ROWS) if not others else min(parting(ROWS), parting(COLUMNS), key=lambda one: one.rank)


def _first_names(network: Network) -> dict[str, str]:
    """Return the first name of each node: a factor may have several names for the same modes."""
    firsts: dict[Node, str] = {}
    return {name: firsts.setdefault(node, name) for name, node in network.nodes.items()}


def _least_cut(carriers: Mapping[str, list[Vertex]], sizes: Mapping[str, int]) -> tuple[Modes, frozenset[Vertex]]:
    """Find the modes of least product that separate ROWS from COLUMNS, and the nodes that stay connected to ROWS.

    Uses shortest augmenting paths (Edmonds and Karp).
    """
    room: dict[Vertex, dict[Vertex, float]] = {ROWS: {}, COLUMNS: {}}

    def arc(start: Vertex, end: Vertex, capacity: float) -> None:
        room.setdefault(start, {})[end] = capacity
        room.setdefault(end, {}).setdefault(start, 0.0)

    for mode, nodes in carriers.items():
        entry, leave = ("in", mode), ("out", mode)
        arc(entry, leave, math.log(sizes[mode]))
        for node in nodes:
            arc(node, entry, math.inf)
            arc(leave, node, math.inf)
    while COLUMNS in (parents := _reached(room)):
        path: list[Vertex] = [COLUMNS]
        while path[-1] != ROWS:
            path.append(parents[path[-1]])
        arcs = list(zip(path[1:], path, strict=False))
        flow = min(room[start][end] for start, end in arcs)
        for start, end in arcs:
            room[start][end] -= flow
            room[end][start] += flow
    cut = (mode for mode in carriers if ("in", mode) in parents and ("out", mode) not in parents)
    return tuple(mode for mode in cut if sizes[mode] > 1), frozenset(parents)


def _reached(room: Mapping[Vertex, Mapping[Vertex, float]]) -> dict[Vertex, Vertex]:
    """Return the parent of each node that a breadth-first search from ROWS reaches over arcs with capacity left."""
    parents: dict[Vertex, Vertex] = {ROWS: ROWS}
    waiting: list[Vertex] = [ROWS]
    for node in waiting:
        for other, left in room[node].items():
            if left > EMPTY and other not in parents:
                parents[other] = node
                waiting.append(other)
    return parents


@lru_cache(maxsize=4096)
def _generic(split: Split, seed: int) -> int:
    """Return the rank modulo the prime of the matrix, or of a random sketch large enough to keep its rank."""
    network, random = split.network, np.random.default_rng(seed)
    if network.scale == 0:
        return 0
    sizes, most = dict(network.sizes), _bound(split).rank
    nodes = split.nodes
    entries = sum(network.volume(modes) for modes in nodes.values())
    entries += sum(
        most * network.volume(modes) for modes in (split.rows, split.columns) if network.volume(modes) > most
    )
    budget = Budget("generic_rank", flops=WORK)
    budget.spend(0, entries)
    arrays: dict[tuple[str, bool], Residues] = {}
    for name, node in network.nodes.items():  # a factor has the same values wherever it is used, its start has others
        if (node.factor, node.at_start) not in arrays:
            shape, factor = [sizes[mode] for mode in nodes[name]], network.factors[node.factor]
            arrays[node.factor, node.at_start] = generic_node(factor, shape, random, budget)
    answer: list[Modes] = []
    sketches: dict[Modes, Residues] = {}
    for name, modes in ((ROWS, split.rows), (COLUMNS, split.columns)):
        carried = [{mode for node in term.nodes for mode in nodes[node]} for term in network.terms]
        if network.volume(modes) > most or any(not {*modes} <= one for one in carried):
            sizes[name] = min(most, network.volume(modes))
            sketches[name, *modes] = residues([sizes[mode] for mode in (name, *modes)], random)
            answer.append((name,))
        else:
            answer.append(modes)
    total: Residues = np.zeros((), np.int64)
    for term in network.terms:
        inputs = [*(nodes[name] for name in term.nodes), *sketches]
        values = [arrays[network.nodes[name].factor, network.nodes[name].at_start] for name in term.nodes]
        question = question_of(inputs, (*answer[0], *answer[1]), sizes)
        total = total + term.sign * contract(question, [*values, *sketches.values()], budget)
    return rank((total % PRIME).reshape(math.prod(sizes[mode] for mode in answer[0]), -1), budget)


def _drawn_rank(adapter: Adapter, group: Group, site: Site, random: np.random.Generator) -> int:
    names = {adapter.slot_name(group, factor) for factor in group.network.factors}
    slots = [slot for name, slot in adapter.slots.items() if name in names]
    params = {
        slot.name: random.standard_normal(slot.shape) if slot.factor.trainable else sample(slot, adapter.seed)
        for slot in slots
    }
    dense = delta(adapter, params, site).reshape(site.shape[0], -1)
    wide = minimum_cut(group.network).rank + SKETCH
    if wide < dense.shape[1]:
        dense = dense @ random.standard_normal((dense.shape[1], wide))
    return int(np.linalg.matrix_rank(dense))
