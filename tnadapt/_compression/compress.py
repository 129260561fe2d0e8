"""Compress trained adapters: find the adapter of a spec whose updates are closest to given ones."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tnadapt._compression.first_guess import tries_of
from tnadapt._compression.least_squares import Factors, Problem, Term, improve_factor, improve_pair, pairs_of
from tnadapt._compression.updates import Update, check_update, terms_of
from tnadapt._errors import SiteError, SpecError
from tnadapt._hosts import Site, expect_sites
from tnadapt._language import Adapter, AdapterSpec, Group, Network, Scale
from tnadapt._language import Term as SpecTerm
from tnadapt._signature import answers, mistake, told
from tnadapt._structure import LoRA
from tnadapt._values import Array, Operand, Params, drawn_starts, init
from tnadapt.families import SpecLike, spec_of

__all__ = ["Compression", "Sweep", "compress"]

SWEEPS, TOLERANCE = 100, 1e-5
RACE = 5  # sweeps of each start; then only the best one continues
ROUNDED = 1e-8  # relative error: a Gram matrix cannot distinguish a smaller one from 0


@dataclass(frozen=True)
class Sweep:
    """The progress of a fit: the number of the group and of the sweep, how many there are at most, and the error."""

    group: int
    groups: int
    number: int
    sweeps: int
    error: float


@dataclass(frozen=True)
class Compression:
    """The closest adapter that was found, its params and its errors.

    `errors` has the relative error of each site in the Frobenius norm. For an update of 0 it is 0 if the fit is exact,
    and infinity otherwise. `history` has the relative error of each group at the start and after each sweep; it never
    rises. Relative errors of about 1e-8 are rounding.
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
    scale: Scale | float | None = None,
    seed: int = 0,
    overparametrized: bool = False,
    weights: Mapping[str, npt.ArrayLike] | None = None,
    start: Mapping[str, npt.ArrayLike] | None = None,
    starts: int | None = None,
    sweeps: int = SWEEPS,
    tolerance: float = TOLERANCE,
    tell: Callable[[Sweep], None] | None = None,
) -> Compression:
    """Find the adapter of a spec whose updates are closest to given ones in the Frobenius norm over all sites.

    Frozen factors keep the values of the seed. The problem has local minima. The result is one of them, reached from
    the start whose error was lowest after a few sweeps.

    Args:
        updates: site -> its update, as a `LoRA` or as a dense array of the site's shape. A LoRA is never multiplied
            out. `low_rank_updates(adapter, params)` returns the updates of an adapter.
        spec: the spec of the result, or a family or its name.
        rank: as for `bind`.
        sizes: as for `bind`.
        alpha: as for `bind`; it only rescales the params.
        scale: as for `bind`; it only rescales the params.
        seed: the seed of the frozen factors and of the random starts.
        overparametrized: as for `bind`.
        weights: the host's weights, as for `init`; needed if the spec's starting values are read from them.
        start: params to start from, instead of the built-in starts.
        starts: the number of built-in starts to try. By default it is four, or one if the trained factors form a tree,
            as in a LoRA, a Tucker tensor or a tensor train, or if only one factor is trained.
        sweeps: the most sweeps over the factors of a group.
        tolerance: stop after a sweep that lowers the error by less than this fraction of it.
        tell: a function that is called after each sweep.

    Raises:
        SpecError: a factor with a map or of the host, or a trained factor that is used twice or shared by several
            groups.
        SiteError: an update that is not finite or not of its site's shape; a start of another adapter; sizes as for
            `bind`.
    """
    spec = spec_of(spec, "compress")
    if not isinstance(updates, Mapping):
        todo = "Pass low_rank_updates(adapter, params), or {site: array}."
        raise mistake(SiteError, "compress", "updates by site", told(updates), todo)
    expect_sites(updates, "compress")
    if sweeps < 1 or (starts is not None and starts < 1):
        raise SiteError(f"compress: expected starts and sweeps of at least 1, got {starts} and {sweeps}.")
    _check_linear(spec)
    checked = {site: check_update(site, update) for site, update in updates.items()}
    adapter = spec.bind(
        checked, rank=rank, sizes=sizes, alpha=alpha, scale=scale, seed=seed, overparametrized=overparametrized
    )
    shared = [name for name, factor in spec.arrays.items() if factor.shared and factor.trainable]
    if shared and len(adapter.groups) > 1:
        fault = f"got {shared[0]!r}, which {len(adapter.groups)} groups share"
        raise SpecError(spec.name, [f"compress: expected trained factors of one group each, {fault}"])
    params = init(adapter, weights) if start is None else _begin_at(adapter, start)
    errors: dict[Site, float] = {}
    history, squares = {}, np.zeros(2)
    for number, group in enumerate(adapter.groups):

        def report(sweep: int, error: float, number: int = number) -> None:
            if tell is not None:
                tell(Sweep(number, len(adapter.groups), sweep, sweeps, error))

        ask = _Ask(start is not None, starts, (seed, number), sweeps, tolerance, report)
        problem, found, history[group.name] = _fit(adapter, group, checked, params, ask)
        missed, whole = _missed_and_whole(problem, found)
        squares += (missed.sum(), whole.sum())
        for site in group.sites:
            at = tuple(adapter.address(site).index.values())
            errors[site] = _relative(missed[at], whole[at], problem.square)
    in_order = {site: errors[site] for site in adapter.sites}
    return Compression(adapter, params, _relative(float(squares[0]), float(squares[1]), 0.0), in_order, history)


@dataclass(frozen=True)
class _Ask:
    """How to fit: whether from the present params, else from how many built-in starts; when to stop; what to tell."""

    is_begun: bool
    starts: int | None
    seed: tuple[int, int]
    sweeps: int
    tolerance: float
    report: Callable[[int, float], None]


def _fit(
    adapter: Adapter,
    group: Group,
    updates: Mapping[Site, Update],
    params: Params,
    ask: _Ask,
) -> tuple[Problem, Factors, tuple[float, ...]]:
    """Fit the trained terms of a group in turn, each to what the others leave, and set their factors in params.

    Returns the fit of the last term, its factors, and the errors, which never rise.
    """
    terms = _trained_terms(group.network)
    parts, drawn = adapter.address(group.sites[0]).parts, drawn_starts(adapter, group)
    sweeps = ask.sweeps if len(terms) == 1 else RACE
    course: list[float] = []
    for turn in range(ask.sweeps if len(terms) > 1 else 1):
        before = course[-1:]
        for term in terms:
            values = params | drawn
            problem = _problem(adapter, group, updates, values, term)
            found = {name: values[parts[name].name][parts[name].stack] for name in problem.network.factors}
            is_begun = ask.is_begun or turn > 0
            begin = iter([found]) if is_begun else tries_of(problem, found, ask.starts, [*ask.seed])
            better, errors = _descend(problem, begin, sweeps, ask.tolerance, ask.report)
            if not course or errors[-1] <= course[-1]:
                found = better
                params |= {parts[factor].name: found[factor] for factor in problem.trainable}
                course += errors if len(terms) == 1 else errors[-1:]
        if course[-1] <= ROUNDED or (before and before[0] - course[-1] <= ask.tolerance * course[-1]):
            break
    return problem, found, tuple(course)


def _begin_at(adapter: Adapter, start: Mapping[str, npt.ArrayLike]) -> Params:
    """Return the given start as float64 arrays. Raises SiteError for one that is missing or has the wrong shape."""
    params: Params = {}
    for name, slot in adapter.slots.items():
        if name not in start:
            raise SiteError(f"start: expected an array {name!r}, got none.")
        params[name] = np.array(start[name], dtype=np.float64)
        if params[name].shape != slot.shape:
            raise SiteError(f"start[{name!r}]: expected shape {slot.shape}, got {params[name].shape}.")
    return params


def _check_linear(spec: AdapterSpec) -> None:
    """Raise SpecError unless the update is linear in each trained factor, which is then in one term alone."""
    if spec.hosts:
        name = next(iter(spec.hosts))
        raise SpecError(spec.name, [f"compress: expected factors with arrays, got the host's weight as {name!r}"])
    if spec.magnitude:
        fault = f"got the magnitude {spec.magnitude!r}, which scales the host's weight as well"
        raise SpecError(spec.name, [f"compress: expected an update that is a sum of products, {fault}"])
    trained = _trained_terms(spec)
    mapped = [name for name, factor in spec.arrays.items() if factor.map]
    uses = Counter(spec.nodes[name].factor for term in trained for name in term.nodes if _is_trained(spec, name))
    twice = [name for name, times in uses.items() if times > 1]
    fault = ""
    if mapped:
        fault = f"got a map on {mapped[0]!r}"
    elif twice:
        fault = f"got {twice[0]!r} twice"
    if fault:
        raise SpecError(
            spec.name, [f"compress: expected each trained factor in one term, once and without a map, {fault}"]
        )


def _trained_terms(of: AdapterSpec | Network) -> list[SpecTerm]:
    terms = of.sum if isinstance(of, AdapterSpec) else of.terms
    return [term for term in terms if any(_is_trained(of, name) for name in term.nodes)]


def _is_trained(of: AdapterSpec | Network, node: str) -> bool:
    arrays = of.arrays if isinstance(of, AdapterSpec) else of.factors
    return arrays[of.nodes[node].factor].trainable and not of.nodes[node].at_start


def _problem(
    adapter: Adapter, group: Group, updates: Mapping[Site, Update], values: Params, trained: SpecTerm
) -> Problem:
    """Return the fit of one trained term to the updates less all other terms, which are constant meanwhile."""
    network = group.network
    presence = np.zeros([network.sizes[mode] for mode in network.over])
    for site in group.sites:
        presence[tuple(group.index(site).values())] = 1.0
    factors = {
        name: replace(network.factors[node.factor], modes=node.modes, trainable=network.is_trained(name))
        for name, node in ((name, network.nodes[name]) for name in trained.nodes)
    }
    alone = Network(network.axes, network.over, factors, network.sizes, trained.sign * network.scale)
    parts = adapter.address(group.sites[0]).parts
    outer = (*network.over, *network.out_modes, *network.in_modes)
    known: list[Term] = []
    for number, term in enumerate(other for other in network.terms if other != trained):
        operands: list[Operand] = [(np.array(-term.sign * network.scale), ()), (presence, network.over)]
        for name in term.nodes:
            modes = tuple(mode if mode in outer else f"{mode}(known {number})" for mode in network.nodes[name].modes)
            operands.append((np.asarray(values[parts[name].name], dtype=np.float64)[parts[name].stack], modes))
        known.append(tuple(operands))
    return Problem(alone, terms_of(group, updates), tuple(known), presence)


def _descend(
    problem: Problem,
    starts: Iterator[Factors],
    sweeps: int,
    tolerance: float,
    report: Callable[[int, float], None],
) -> tuple[Factors, tuple[float, ...]]:
    """Return the final factors of the best start, and its relative error after each sweep."""
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
    """The descent from one start."""

    def __init__(self, problem: Problem, factors: Factors) -> None:
        self.problem, self.factors = problem, factors
        self.pairs = pairs_of(problem)
        missed, whole = _missed_and_whole(problem, factors)
        self.loss, self.whole = float(missed.sum()), float(whole.sum())
        self.errors = [self._error()]

    def sweep(self) -> None:
        """Improve every pair, then every factor. A pair that is not better after its split is not tried again."""
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
        """Return whether the last sweep gained less than the tolerance, or the error is down to rounding."""
        last = self.errors[-1]
        return last <= ROUNDED or (len(self.errors) > 1 and self.errors[-2] - last <= tolerance * last)


def _missed_and_whole(problem: Problem, factors: Factors) -> tuple[Array, Array]:
    """Return the squared norms of the residual and of the given update at each site of the grid."""
    over = problem.network.over
    term: Term = ((np.array(problem.network.scale), ()), *problem.operands(factors))
    own = problem.inner([term], [term], over)
    both = problem.inner([term], problem.terms, over)
    missed = problem.inner(problem.terms, problem.terms, over) - 2.0 * both + own
    return missed, problem.inner(problem.given, problem.given, over)


def _relative(missed: float, whole: float, scale: float) -> float:
    """Return the norm of the residual relative to that of the update, given their squares.

    `scale` is the squared norm that decides what is rounding if the update is 0.
    """
    if whole > 0.0:
        return math.sqrt(max(missed, 0.0) / whole)
    return math.inf if missed > ROUNDED**2 * scale else 0.0
