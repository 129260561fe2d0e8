"""The adapter of a spec that is closest to given updates: how trained adapters become smaller ones."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tnadapt._compression.first_guess import tries_of
from tnadapt._compression.least_squares import Factors, Problem, Term, improve_factor, improve_pair, pairs_of
from tnadapt._compression.updates import Update, check_update, terms_of
from tnadapt._errors import SiteError, SpecError
from tnadapt._hosts import Site, expect_sites
from tnadapt._language import Adapter, Group
from tnadapt._signature import answers, mistake, told
from tnadapt._structure import LoRA
from tnadapt._values import Array, Operand, Params, init, starts_of
from tnadapt.families import SpecLike, spec_of

__all__ = ["Compression", "Sweep", "compress"]

SWEEPS, TOLERANCE = 100, 1e-5
RACE = 5  # sweeps after which the best start goes on alone
ROUNDED = 1e-8  # relative: a Gram matrix tells no smaller errors from 0


@dataclass(frozen=True)
class Sweep:
    """What is told of a fit on its way: which group of how many, which sweep of how many at most, the error."""

    group: int
    groups: int
    number: int
    sweeps: int
    error: float


@dataclass(frozen=True)
class Compression:
    """The closest adapter that was found.

    `errors` has the relative error of each site, by Frobenius norms: 0 where an update of 0 was met, infinity where it
    was not. `history` has the relative error of each group after each sweep, the start's first; it never rises. Errors
    of a relative size of 1e-8 are rounding.
    """

    adapter: Adapter
    params: Params
    error: float
    errors: Mapping[Site, float]
    history: Mapping[str, tuple[float, ...]]


@answers(SiteError)
def compress(
    updates: Mapping[Site, npt.ArrayLike | LoRA],
    spec: SpecLike,
    *,
    rank: int | Mapping[str, int] | None = None,
    sizes: Mapping[str, int] | None = None,
    alpha: float | None = None,
    seed: int = 0,
    overparametrized: bool = False,
    weights: Mapping[str, npt.ArrayLike] | None = None,
    start: Mapping[str, npt.ArrayLike] | None = None,
    starts: int | None = None,
    sweeps: int = SWEEPS,
    tolerance: float = TOLERANCE,
    tell: Callable[[Sweep], None] | None = None,
) -> Compression:
    """The adapter of a spec whose updates are closest to given ones, in the Frobenius norm over all sites.

    Frozen factors keep the values of the seed. The problem has local minima: what is found is one of them, from the
    start that had come farthest after a few sweeps.

    Args:
        updates: site -> its update, as a `LoRA`, or dense and of the site's shape. Of LoRAs no dense update is ever
            made. `low_rank_updates(adapter, params)` gives those of an adapter.
        spec: the spec of the answer, or a family, or the name of one.
        rank: as for `bind`.
        sizes: as for `bind`.
        alpha: as for `bind`; it only divides the params.
        seed: of the frozen factors and of the random starts.
        overparametrized: as for `bind`.
        weights: as for `init`, where the spec's start is read from the host's.
        start: params to begin at, in place of our own starts.
        starts: how many starts of our own are tried; by default four, and one where the trained factors form a tree, as
            in LoRA, in a Tucker tensor or in a train.
        sweeps: at most so many over the factors of a group.
        tolerance: a sweep that lowers the error by less than this part of it is the last.
        tell: called after each sweep.

    Raises:
        SpecError: a factor with a map.
        SiteError: an update that is not finite or not of its site's shape; a start that is not this adapter's; sizes
            as for `bind`.
    """
    spec = spec_of(spec, "compress")
    if not isinstance(updates, Mapping):
        todo = "Pass low_rank_updates(adapter, params), or {site: array}."
        raise mistake(SiteError, "compress", "updates by site", told(updates), todo)
    expect_sites(updates, "compress")
    if sweeps < 1 or (starts is not None and starts < 1):
        raise SiteError(f"compress: starts and sweeps must be at least 1, got {starts} and {sweeps}.")
    if mapped := [name for name, factor in spec.factors.items() if factor.map]:
        raise SpecError(spec.name, [f"compress: an update is not linear in what {mapped[0]!r} holds: it has a map"])
    checked = {site: check_update(site, update) for site, update in updates.items()}
    adapter = spec.bind(checked, rank=rank, sizes=sizes, alpha=alpha, seed=seed, overparametrized=overparametrized)
    params = init(adapter, weights) if start is None else _begin_at(adapter, start)
    errors: dict[Site, float] = {}
    history, squares = {}, np.zeros(2)
    for number, group in enumerate(adapter.groups):
        problem = _problem(adapter, group, checked, params)
        parts = adapter.address(group.sites[0]).parts
        own = {factor: params[part.name][part.stack] for factor, part in parts.items()}

        def report(sweep: int, error: float, number: int = number) -> None:
            if tell is not None:
                tell(Sweep(number, len(adapter.groups), sweep, sweeps, error))

        begin = iter([own]) if start is not None else tries_of(problem, own, starts, [seed, number])
        found, history[group.name] = _descend(problem, begin, sweeps, tolerance, report)
        params |= {parts[factor].name: found[factor] for factor in problem.trainable}
        missed, whole = _missed_and_whole(problem, found)
        squares += (missed.sum(), whole.sum())
        for site in group.sites:
            at = tuple(adapter.address(site).index.values())
            errors[site] = _relative(missed[at], whole[at], problem.square)
    in_order = {site: errors[site] for site in adapter.sites}
    return Compression(adapter, params, _relative(float(squares[0]), float(squares[1]), 0.0), in_order, history)


def _begin_at(adapter: Adapter, start: Mapping[str, npt.ArrayLike]) -> Params:
    """The start as float64 arrays. Raises SiteError for one that is missing or has another shape."""
    params: Params = {}
    for name, slot in adapter.slots.items():
        if name not in start:
            raise SiteError(f"start: {name!r} is missing.")
        params[name] = np.array(start[name], dtype=np.float64)
        if params[name].shape != slot.shape:
            raise SiteError(f"start[{name!r}]: must have shape {slot.shape}.\nHowever, it has {params[name].shape}.")
    return params


def _problem(adapter: Adapter, group: Group, updates: Mapping[Site, Update], params: Params) -> Problem:
    network = group.network
    presence = np.zeros([network.sizes[mode] for mode in network.over])
    for site in group.sites:
        presence[tuple(group.index(site).values())] = 1.0
    terms = terms_of(group, updates)
    if not network.centered:
        return Problem(network, terms, (), presence)
    outer = (*network.over, *network.out_modes, *network.in_modes)
    start: list[Operand] = [(np.array(network.scale), ()), (presence, network.over)]
    values = starts_of(adapter, params, group)
    for name, factor in network.factors.items():
        part = adapter.address(group.sites[0]).parts[name]
        modes = tuple(mode if mode in outer else f"{mode}(start)" for mode in factor.modes)
        start.append((np.asarray(values[part.name], dtype=np.float64)[part.stack], modes))
    return Problem(network, terms, (tuple(start),), presence)


def _descend(
    problem: Problem,
    starts: Iterator[Factors],
    sweeps: int,
    tolerance: float,
    report: Callable[[int, float], None],
) -> tuple[Factors, tuple[float, ...]]:
    """The factors at the end, and the relative error after each sweep: that of the best start."""
    runs: list[_Run] = []
    for start in starts:
        runs.append(_Run(problem, start))
        while len(runs[-1].errors) <= min(RACE, sweeps) and not runs[-1].is_over(tolerance):
            runs[-1].sweep()
        report(0, min(run.errors[-1] for run in runs))
        if runs[-1].errors[-1] <= ROUNDED:
            break
    best = min(runs, key=lambda run: run.errors[-1])
    while len(best.errors) <= sweeps and not best.is_over(tolerance):
        best.sweep()
        report(len(best.errors) - 1, best.errors[-1])
    report(sweeps, best.errors[-1])
    return best.factors, tuple(best.errors)


class _Run:
    """One start on its way down."""

    def __init__(self, problem: Problem, factors: Factors) -> None:
        self.problem, self.factors = problem, factors
        self.pairs = pairs_of(problem)
        missed, whole = _missed_and_whole(problem, factors)
        self.loss, self.whole = float(missed.sum()), float(whole.sum())
        self.errors = [self._error()]

    def sweep(self) -> None:
        """Every pair, then every factor. A pair whose parting made it worse is not tried again."""
        for pair in list(self.pairs):
            factors, loss, is_better = improve_pair(self.problem, self.factors, pair)
            if not is_better:
                self.pairs.remove(pair)
            self._keep(factors, loss)
        for name in self.problem.trainable:
            self._keep(*improve_factor(self.problem, self.factors, name))
        self.errors.append(self._error())

    def _keep(self, factors: Factors, loss: float) -> None:
        if loss <= self.loss:
            self.factors, self.loss = factors, loss

    def _error(self) -> float:
        return _relative(self.loss, self.whole, self.problem.square)

    def is_over(self, tolerance: float) -> bool:
        """Whether the last sweep gained next to nothing, or nothing is left to gain."""
        last = self.errors[-1]
        return last <= ROUNDED or (len(self.errors) > 1 and self.errors[-2] - last <= tolerance * last)


def _missed_and_whole(problem: Problem, factors: Factors) -> tuple[Array, Array]:
    """The squared norms of what is missed and of the given update, for each place of the grid."""
    over = problem.network.over
    term: Term = ((np.array(problem.network.scale), ()), *problem.operands(factors))
    own = problem.inner([term], [term], over)
    both = problem.inner([term], problem.terms, over)
    missed = problem.inner(problem.terms, problem.terms, over) - 2.0 * both + own
    return missed, problem.inner(problem.given, problem.given, over)


def _relative(missed: float, whole: float, scale: float) -> float:
    """The norm of what is missed over that of the whole, from squares; `scale` tells what is rounding."""
    if whole > 0.0:
        return math.sqrt(max(missed, 0.0) / whole)
    return math.inf if missed > ROUNDED**2 * scale else 0.0
