"""How high the rank of an update can be: a bound from the structure, and the rank at generic values."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from tnadapt._errors import PlanError, SiteError
from tnadapt._hosts import Site
from tnadapt._language import Adapter, Group, Network, expect_adapter
from tnadapt._signature import answers
from tnadapt._structure.modular import PRIME, Budget, contract, question_of, rank, residues
from tnadapt._values import delta, sample

__all__ = ["Cut", "generic_rank", "minimum_cut", "rank_bound"]

Modes = tuple[str, ...]
Node = str | tuple[str, str]

ROWS, COLUMNS, GLUE = "(rows)", "(columns)", "(glue)"  # brackets: no mode and no factor can have these names
EMPTY = 1e-12  # of the capacity of an arc; products below 10^11 that differ, differ by more in their logarithms
WORK = 2**33  # flops of an evaluation: some seconds
SKETCH = 32  # columns beyond the bound, for the rank of rounded numbers


@dataclass(frozen=True)
class Cut:
    """A bound on a rank: cutting `modes` parts the rows from the columns, in each of `times` networks.

    A centered update is the difference of two networks, and counts both unless all that differs is on one side.
    """

    rank: int
    modes: Modes
    times: int = 1

    def __str__(self) -> str:
        """As in 8 (cut p)."""
        twice = f"{self.times} times " if self.times > 1 else ""
        return f"{self.rank:,} ({twice}cut {', '.join(self.modes) or 'nothing'})"


@dataclass(frozen=True)
class Parting:
    """A minimum cut, and the factors on the rows' side of it; the others are on the columns' side, or on neither."""

    cut: Cut
    row_factors: frozenset[str]


@dataclass(frozen=True)
class Split:
    """A network at one site, or a stack of all its sites, with its open modes parted into rows and columns."""

    network: Network
    is_stack: bool
    rows: Modes

    @property
    def factors(self) -> dict[str, Modes]:
        """The modes that each factor has here."""
        net = self.network
        return {name: net.factors[name].modes if self.is_stack else net.local_modes(name) for name in net.factors}

    @property
    def open_modes(self) -> Modes:
        """The modes that are not summed."""
        return open_modes(self.network, is_stack=self.is_stack)

    @property
    def columns(self) -> Modes:
        """The open modes that are no rows."""
        return tuple(mode for mode in self.open_modes if mode not in self.rows)


def open_modes(network: Network, *, is_stack: bool) -> Modes:
    """The modes that are not summed: those of the weight, and before them the site modes of a stack."""
    return (*(network.over if is_stack else ()), *network.out_modes, *network.in_modes)


def networks_at(adapter: Adapter, where: Site | Group | str | None) -> Iterator[tuple[Group, Site | None]]:
    """What a question is about: a site; a group as a stack (no site), by itself or its name; without an answer all.

    Raises SiteError for what is neither of this adapter.
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
        raise SiteError(f"where: must be a site of this adapter, its path, or a group.\nHowever, it is {where!r}.")


@answers(SiteError)
def rank_bound(
    adapter: Adapter, where: Site | Group | str | None = None, *, rows: Collection[str] | None = None
) -> Cut:
    """The least cut between rows and columns of an update: no values give it a higher rank.

    A mode is cut at the price of its size, once, however many factors carry it (a minimum cut of the hypergraph).

    Args:
        adapter: whose updates are asked about.
        where: a site; or a group, whose updates are then one tensor that has the site modes too; without either the
            largest bound over all groups.
        rows: the open modes that number the rows, as ("layer",); the out modes by default.

    Raises:
        PlanError: rows that are not open there, or a stack with holes in its grid of sites.
        SiteError: a site or a group that is not this adapter's.
    """
    expect_adapter(adapter, "rank_bound")
    splits = {_split(group, site, rows) for group, site in networks_at(adapter, where)}
    return max((_bound(split) for split in splits), key=lambda cut: cut.rank)


def minimum_cut(network: Network) -> Cut:
    """The bound on the rank of one site's update, from its network."""
    return part(network).cut


def part(network: Network) -> "Parting":
    """The minimum cut of one site's update, and which factors lie on its out side."""
    return _part(Split(network, is_stack=False, rows=network.out_modes))


@answers(SiteError)
def generic_rank(
    adapter: Adapter,
    where: Site | Group | str | None = None,
    *,
    rows: Collection[str] | None = None,
    frozen: Literal["generic", "drawn"] = "generic",
    seed: int = 0,
) -> int:
    """The rank at random values, which is that of all values but a set of measure zero.

    Computed modulo the prime p = 2^31 - 19, exactly. What comes out is never too high, and too low with a probability
    of at most rank x (factors + 2) / p: the degree of a minor, two random sketches among its factors.

    Args:
        adapter: whose updates are asked about.
        where: as in `rank_bound`; without it the highest over all groups.
        rows: as in `rank_bound`.
        frozen: "generic" for random frozen factors, "drawn" for those of the adapter's seed: then in float64 by
            singular values, one site only.
        seed: of the random values.

    Raises:
        PlanError: as for `rank_bound`; "drawn" for a stack, or with rows; too much work.
        SiteError: a site or a group that is not this adapter's.
    """
    expect_adapter(adapter, "generic_rank")
    places = list(networks_at(adapter, where))
    if frozen not in ("generic", "drawn"):
        raise PlanError(f"generic_rank: frozen must be 'generic' or 'drawn', got {frozen!r}.")
    if frozen == "drawn":
        group, site = places[0]
        if site is None or rows is not None:
            raise PlanError("generic_rank: the rank with drawn factors is that of one site.\nPass a site, and no rows.")
        return _drawn_rank(adapter, group, site, np.random.default_rng(seed))
    splits = {_split(group, site, rows) for group, site in places}
    return max(_generic(split, seed) for split in splits)


def _split(group: Group, site: Site | None, rows: Collection[str] | None) -> Split:
    known = open_modes(group.network, is_stack=site is None)
    chosen = group.network.out_modes if rows is None else tuple(rows)
    if unknown := [mode for mode in chosen if mode not in known]:
        raise PlanError(
            f"rows: {unknown[0]!r} is not an open mode {'of the stack' if site is None else 'of one site'}.\n"
            f"Open are {', '.join(known)}."
        )
    if site is None and group.places is not None:
        raise PlanError(
            f"{group.name or 'the group'}: the rank of a stack is that of a whole grid of sites.\n"
            f"However, its {len(group.sites)} sites leave holes along ({' '.join(group.network.over)}).\n"
            "Ask about one site."
        )
    return Split(group.network, site is None, tuple(mode for mode in known if mode in chosen))


def _bound(split: Split) -> Cut:
    return _part(split).cut


@lru_cache(maxsize=4096)
def _part(split: Split) -> Parting:
    network = split.network
    carriers: dict[str, list[str]] = {}
    for name, modes in split.factors.items():
        for mode in modes:
            carriers.setdefault(mode, []).append(name)
    for mode in split.open_modes:
        carriers.setdefault(mode, []).append(ROWS if mode in split.rows else COLUMNS)

    def parting(times: int, glue: list[str]) -> Parting:
        modes, reached = _least_cut(carriers | {GLUE: glue}, dict(network.sizes))
        row_factors = frozenset(name for name in network.factors if name in reached)
        return Parting(Cut(times * network.volume(modes), modes, times), row_factors)

    if not network.centered:
        return parting(1, [])
    trained = [name for name, factor in network.factors.items() if factor.trainable]
    tries = parting(1, [ROWS, *trained]), parting(1, [COLUMNS, *trained]), parting(2, [])
    return min(tries, key=lambda one: one.cut.rank)


def _least_cut(carriers: Mapping[str, list[str]], sizes: Mapping[str, int]) -> tuple[Modes, frozenset[Node]]:
    """The modes of least product that part ROWS from COLUMNS, and all that then hangs together with ROWS.

    By shortest augmenting paths (Edmonds and Karp).
    """
    room: dict[Node, dict[Node, float]] = {ROWS: {}, COLUMNS: {}}

    def arc(start: Node, end: Node, capacity: float) -> None:
        room.setdefault(start, {})[end] = capacity
        room.setdefault(end, {}).setdefault(start, 0.0)

    for mode, nodes in carriers.items():
        entry, leave = ("in", mode), ("out", mode)
        arc(entry, leave, math.log(sizes[mode]) if mode in sizes else math.inf)
        for node in nodes:
            arc(node, entry, math.inf)
            arc(leave, node, math.inf)
    while COLUMNS in (parents := _reached(room)):
        path: list[Node] = [COLUMNS]
        while path[-1] != ROWS:
            path.append(parents[path[-1]])
        arcs = list(zip(path[1:], path, strict=False))
        flow = min(room[start][end] for start, end in arcs)
        for start, end in arcs:
            room[start][end] -= flow
            room[end][start] += flow
    cut = (mode for mode in carriers if ("in", mode) in parents and ("out", mode) not in parents)
    return tuple(mode for mode in cut if sizes[mode] > 1), frozenset(parents)


def _reached(room: Mapping[Node, Mapping[Node, float]]) -> dict[Node, Node]:
    """From where each node is reached first, breadth first from ROWS over arcs with room left."""
    parents: dict[Node, Node] = {ROWS: ROWS}
    waiting: list[Node] = [ROWS]
    for node in waiting:
        for other, left in room[node].items():
            if left > EMPTY and other not in parents:
                parents[other] = node
                waiting.append(other)
    return parents


@lru_cache(maxsize=4096)
def _generic(split: Split, seed: int) -> int:
    """The rank modulo the prime: of the matrix itself, or of a random sketch of it that cannot have less."""
    network, random = split.network, np.random.default_rng(seed)
    if network.scale == 0:
        return 0
    sizes, most = dict(network.sizes), _bound(split).rank
    entries = sum(network.volume(modes) for modes in split.factors.values())
    entries += sum(
        most * network.volume(modes) for modes in (split.rows, split.columns) if network.volume(modes) > most
    )
    budget = Budget("generic_rank", flops=WORK)
    budget.spend(0, entries)
    operands = {name: residues([sizes[mode] for mode in modes], random) for name, modes in split.factors.items()}
    inputs = list(split.factors.values())
    answer: list[Modes] = []
    sketches = []
    for name, modes in ((ROWS, split.rows), (COLUMNS, split.columns)):
        if network.volume(modes) > most or any(all(mode not in carried for carried in inputs) for mode in modes):
            sizes[name] = min(most, network.volume(modes))
            inputs.append((name, *modes))
            sketches.append(residues([sizes[mode] for mode in inputs[-1]], random))
            answer.append((name,))
        else:
            answer.append(modes)
    question = question_of(inputs, (*answer[0], *answer[1]), sizes)
    matrix = contract(question, [*operands.values(), *sketches], budget)
    if network.centered:
        start = {
            name: residues(value.shape, random) if network.factors[name].trainable else value
            for name, value in operands.items()
        }
        matrix = (matrix - contract(question, [*start.values(), *sketches], budget)) % PRIME
    return rank(matrix.reshape(math.prod(sizes[mode] for mode in answer[0]), -1), budget)


def _drawn_rank(adapter: Adapter, group: Group, site: Site, random: np.random.Generator) -> int:
    names = [adapter.slot_name(group, factor) for factor in group.network.factors]
    slots = [adapter.slots[name] for name in names]
    params = {
        slot.name: random.standard_normal(slot.shape) if slot.factor.trainable else sample(slot, adapter.seed)
        for slot in slots
    }
    dense = delta(adapter, params, site).reshape(site.shape[0], -1)
    wide = minimum_cut(group.network).rank + SKETCH
    if wide < dense.shape[1]:
        dense = dense @ random.standard_normal((dense.shape[1], wide))
    return int(np.linalg.matrix_rank(dense))
