"""Alternating least squares on any network: fit its factors to given updates.

An update is linear in each factor, so the best factor given the others solves normal equations. They come from
contracting the network with itself and with the updates, without that factor. If the updates are given as factors, no
array is as large as their stack. Two trainable factors that share a bond are also solved for as one factor, which is
then split by an SVD, as HOOI does for a Tucker tensor and DMRG for a tensor train. A step that increases the error is
not kept.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tnadapt._language import Network
from tnadapt._values import Array, Modes, Operand, contract, primed

__all__: list[str] = []

Factors = dict[str, Array]
Term = tuple[Operand, ...]
DIRECT = 512  # the most unknowns that are solved by an eigendecomposition; more by conjugate gradients
MATRIX = 2**25  # the most entries of all matrices of one system
CUTOFF = 1e-13  # relative to the largest eigenvalue; smaller ones are rounding
STEPS, ENOUGH = 60, 1e-12  # the most steps of conjugate gradients, and the relative residual that ends them
WIDEST = 2048  # the longest shorter side of a pair, whose Gram matrix is diagonalised


@dataclass(frozen=True)
class Problem:
    """The target of the fit of one network: given updates, as a sum of terms over its grid of sites.

    A term has the modes of the weight, all site modes, and bonds of its own. `start` has the terms of the update that
    are not trained, such as that of the starting values, subtracted from what is given. `presence` has the site modes:
    it is 1 where there is a site and 0 in a hole. All terms are 0 in holes.
    """

    network: Network
    given: tuple[Term, ...]
    start: tuple[Term, ...]
    presence: Array

    @property
    def terms(self) -> tuple[Term, ...]:
        """All terms that the network itself is fitted to."""
        return (*self.given, *self.start)

    @property
    def open_modes(self) -> Modes:
        """The modes of the sites and of the weight."""
        return (*self.network.over, *self.network.out_modes, *self.network.in_modes)

    @cached_property
    def square(self) -> float:
        """The squared Frobenius norm of the sum of all terms."""
        return float(self.inner(self.terms, self.terms, ()))

    @cached_property
    def trainable(self) -> tuple[str, ...]:
        """The trainable factors, most bonds first: a core has no useful values until it is fitted to its leaves."""
        outer = self.open_modes
        names = [name for name, factor in self.network.factors.items() if factor.trainable]
        return tuple(
            sorted(names, key=lambda name: -sum(mode not in outer for mode in self.network.factors[name].modes))
        )

    @cached_property
    def links(self) -> dict[tuple[str, str], Modes]:
        """Pairs of trainable factors -> the bonds that only these two carry."""
        found: dict[tuple[str, str], Modes] = {}
        for mode in self.network.sizes:
            carriers = [name for name, factor in self.network.factors.items() if mode in factor.modes]
            if mode not in self.open_modes and len(carriers) == 2 and set(carriers) <= set(self.trainable):  # noqa: PLR2004
                pair = (carriers[0], carriers[1])
                found[pair] = (*found.get(pair, ()), mode)
        return found

    @cached_property
    def is_tree(self) -> bool:
        """Whether all factors are trainable and connected without loops; pairs then reach the result of HOOI."""
        factors = self.network.factors.values()
        shared = {mode for mode in self.network.sizes if sum(mode in factor.modes for factor in factors) > 1}
        in_links = {mode for bonds in self.links.values() for mode in bonds}
        return in_links == shared - set(self.network.over) and len(self.links) == len(factors) - 1

    @cached_property
    def mask(self) -> list[Operand]:
        """The extra operands of an inner product of two networks: for holes, and for site modes without a carrier."""
        over = self.network.over
        if not self.presence.all():
            return [(self.presence, over)]
        carried = {mode for factor in self.network.factors.values() for mode in factor.modes}
        bare = tuple(mode for mode in over if mode not in carried)
        return [(np.ones([self.network.sizes[mode] for mode in bare]), bare)]

    def operands(self, factors: Mapping[str, Array], *, without: Collection[str] = ()) -> list[Operand]:
        """Return the factors with their modes, except those in `without`."""
        return [(factors[name], one.modes) for name, one in self.network.factors.items() if name not in without]

    def inner(self, left: Sequence[Term], right: Sequence[Term], answer: Modes) -> Array:
        """Return the inner product of two sums of terms: a number, or one per index of the site modes in `answer`."""
        here = (self.presence, self.network.over)
        shape = [self.network.sizes[mode] for mode in answer]
        pairs = ([*one, *primed(other, self.open_modes), here] for one in left for other in right)
        return sum((contract(pair, answer) for pair in pairs), np.zeros(shape))


@dataclass(frozen=True)
class System:
    """The squared error as a function of one block, all others fixed: square - 2 <x, pull> + <x, normal x>.

    A block is one factor, or two merged into one; `modes` are its modes. The normal operator is a matrix over the
    block's bonds for each index of `batch`, the open modes that other factors carry too. It does not depend on the
    block's other open modes.
    """

    square: float
    modes: Modes
    batch: Modes
    bonds: Modes
    pull: Array
    rest: tuple[Operand, ...]
    matrix: Array | None

    def act(self, block: Array) -> Array:
        """Apply the normal operator to a block."""
        ends = tuple(f"{mode}'" for mode in self.bonds)
        moved = (block, tuple(f"{mode}'" if mode in self.bonds else mode for mode in self.modes))
        if self.matrix is None:
            return contract([moved, *self.rest], self.modes)
        return contract([moved, (self.matrix, (*self.batch, *self.bonds, *ends))], self.modes)

    def loss(self, block: Array) -> float:
        """Return the squared error with this block, up to rounding of about 1e-16 of `square`."""
        return self.square - 2.0 * float(np.vdot(block, self.pull)) + float(np.vdot(block, self.act(block)))

    def solve(self, block: Array) -> Array:
        """Find the best block as a step from this one, which leaves undetermined directions unchanged."""
        residual = self.pull - self.act(block)
        return block + (self._conjugate(residual) if self.matrix is None else self._direct(residual, self.matrix))

    def _direct(self, residual: Array, matrix: Array) -> Array:
        free = [mode for mode in self.modes if mode not in self.batch and mode not in self.bonds]
        order = [self.modes.index(mode) for mode in (*self.batch, *self.bonds, *free)]
        turned = residual.transpose(order)
        unknowns = math.prod(matrix.shape[len(self.batch) : len(self.batch) + len(self.bonds)])
        square = matrix.reshape(-1, unknowns, unknowns)
        values, vectors = np.linalg.eigh(0.5 * (square + square.swapaxes(1, 2)))
        least = CUTOFF * values[:, -1:]
        weights = np.divide(1.0, values, out=np.zeros_like(values), where=values > np.maximum(least, 0.0))
        known = vectors.swapaxes(1, 2) @ turned.reshape(len(square), unknowns, -1)
        step = vectors @ (weights[:, :, None] * known)
        return np.asarray(step.reshape(turned.shape).transpose(np.argsort(order)))

    def _conjugate(self, residual: Array) -> Array:
        step, search, size = np.zeros_like(residual), residual, float(np.vdot(residual, residual))
        least = ENOUGH**2 * max(size, float(np.vdot(self.pull, self.pull)))
        for _ in range(STEPS):
            if size <= least:
                break
            image = self.act(search)
            curvature = float(np.vdot(search, image))
            if curvature <= 0.0:
                break
            step = step + size / curvature * search
            residual = residual - size / curvature * image
            size, before = float(np.vdot(residual, residual)), size
            search = residual + size / before * search
        return step


def system_of(problem: Problem, factors: Factors, names: Sequence[str]) -> System:
    """Return the squared error as a function of one factor, or of two merged factors."""
    network, outer = problem.network, problem.open_modes
    modes = merged_modes(problem, names)
    rest = problem.operands(factors, without=names)
    scale: Operand = (np.array(network.scale), ())
    pull = sum((contract([scale, *rest, *term], modes) for term in problem.terms), np.zeros(()))
    twice = [scale, *rest, scale, *primed(rest, outer), *problem.mask]
    around = {mode for _, carried in twice for mode in carried}
    bonds = tuple(mode for mode in modes if mode not in outer)
    batch = tuple(mode for mode in modes if mode in outer and mode in around)
    unknowns, matrix = network.volume(bonds), None
    if unknowns <= DIRECT and network.volume(batch) * unknowns**2 <= MATRIX:
        matrix = contract(twice, (*batch, *bonds, *(f"{mode}'" for mode in bonds)))
    return System(problem.square, modes, batch, bonds, pull, tuple(twice), matrix)


def merged_modes(problem: Problem, names: Sequence[str]) -> Modes:
    """Return the modes of the product of these factors, summed over the bonds that only they carry."""
    factors = problem.network.factors
    others = {mode for name, factor in factors.items() if name not in names for mode in factor.modes}
    modes = dict.fromkeys(mode for name in names for mode in factors[name].modes)
    return tuple(mode for mode in modes if mode in others or mode in problem.open_modes)


def improve_factor(problem: Problem, factors: Factors, name: str) -> tuple[Factors, float]:
    """Solve for one factor. Return the factors, and the squared error with them."""
    turned = turn_to(problem, factors, (name,))
    system = system_of(problem, turned, (name,))
    before, best = turned[name], system.solve(turned[name])
    losses = system.loss(before), system.loss(best)
    return (turned, losses[0]) if losses[0] <= losses[1] else (turned | {name: best}, losses[1])


def improve_pair(problem: Problem, factors: Factors, pair: tuple[str, str]) -> tuple[Factors, float, bool]:
    """Solve for two factors as one and split the result by an SVD.

    Return the factors, the squared error with them, and whether it fell. The split is optimal if the rest of the
    network preserves norms. It does once the network is turned to the pair, unless it has loops, frozen factors or
    modes that are shared in other ways.
    """
    turned = turn_to(problem, factors, pair)
    system = system_of(problem, turned, pair)
    sides = problem.operands({name: turned[name] for name in pair}, without=problem.network.factors.keys() - set(pair))
    merged = contract(sides, system.modes)
    halves = _part(problem, system.solve(merged), system.modes, pair)
    joined = contract([(halves[name], problem.network.factors[name].modes) for name in halves], system.modes)
    losses = system.loss(merged), system.loss(joined)
    return (turned, losses[0], False) if losses[0] <= losses[1] else (turned | halves, losses[1], True)


def _part(problem: Problem, merged: Array, modes: Modes, pair: tuple[str, str]) -> Factors:
    """Split a merged factor into the two whose product is closest to it, per index of the modes that both carry."""
    network, bonds = problem.network, problem.links[pair]
    first, second = (network.factors[name].modes for name in pair)
    both = [mode for mode in modes if mode in first and mode in second]
    rows = [mode for mode in modes if mode in first and mode not in both]
    columns = [mode for mode in modes if mode in second and mode not in both]
    matrix = merged.transpose([modes.index(mode) for mode in (*both, *rows, *columns)])
    matrix = matrix.reshape(-1, network.volume(rows), network.volume(columns))
    left, right = _leading_parts(matrix, network.volume(bonds))
    shape = [network.sizes[mode] for mode in bonds]
    halves = {}
    for name, own, half in ((pair[0], rows, left), (pair[1], columns, right.swapaxes(1, 2))):
        order = (*both, *own, *bonds)
        array = half.reshape([network.sizes[mode] for mode in (*both, *own)] + shape)
        halves[name] = array.transpose([order.index(mode) for mode in network.factors[name].modes])
    return halves


def _leading_parts(matrix: Array, rank: int) -> tuple[Array, Array]:
    """Factorize each matrix of a stack as the best product of this rank, by the Gram matrix of the shorter side."""
    if matrix.shape[1] < matrix.shape[2]:
        right, left = _leading_parts(matrix.swapaxes(1, 2), rank)
        return left.swapaxes(1, 2), right.swapaxes(1, 2)
    vectors = np.linalg.eigh(matrix.swapaxes(1, 2) @ matrix)[1][:, :, ::-1][:, :, :rank]
    missing = ((0, 0), (0, 0), (0, rank - vectors.shape[2]))
    return np.pad(matrix @ vectors, missing), np.pad(vectors, missing).swapaxes(1, 2)


def pairs_of(problem: Problem) -> list[tuple[str, str]]:
    """Return the pairs to solve as one: those whose merged block is no larger than the given updates and factors."""
    network = problem.network
    room = sum(array.size for term in problem.terms for array, _ in term)
    room += sum(network.volume(factor.modes) for factor in network.factors.values())
    chosen = []
    for pair in problem.links:
        modes = merged_modes(problem, pair)
        first, second = (set(network.factors[name].modes) for name in pair)
        sides = [network.volume(set(modes) & one - other) for one, other in ((first, second), (second, first))]
        if network.volume(modes) <= room and min(sides) <= WIDEST:
            chosen.append(pair)
    return chosen


def turn_to(problem: Problem, factors: Factors, centre: Sequence[str]) -> Factors:
    """Return factors with the same update that are orthonormal towards `centre`, as far as links reach from there.

    Starting at the farthest, each factor is replaced by Q of its QR decomposition along the bonds to its neighbour on
    the path to the centre, and R is multiplied into that neighbour.
    """
    network, reached, path = problem.network, list(centre), []
    for near in reached:
        for pair, bonds in problem.links.items():
            if near in pair:
                far = pair[1] if near == pair[0] else pair[0]
                if far not in reached:
                    reached.append(far)
                    path.append((far, near, bonds))
    turned = dict(factors)
    for far, near, bonds in reversed(path):
        modes, aims = network.factors[far].modes, network.factors[near].modes
        both = tuple(mode for mode in modes if mode in aims and mode not in bonds)
        own = tuple(mode for mode in modes if mode not in aims)
        width = network.volume(bonds)
        if network.volume(own) < width:
            continue  # fewer rows than columns, which therefore cannot be orthonormal
        order = (*both, *own, *bonds)
        stack = turned[far].transpose([modes.index(mode) for mode in order]).reshape(-1, network.volume(own), width)
        q, r = np.linalg.qr(stack)
        sizes = [network.sizes[mode] for mode in order]
        turned[far] = q.reshape(sizes).transpose([order.index(mode) for mode in modes])
        ends = tuple(f"{mode}'" for mode in bonds)
        r = r.reshape([network.sizes[mode] for mode in (*both, *bonds, *bonds)])
        moved = tuple(f"{mode}'" if mode in bonds else mode for mode in aims)
        turned[near] = contract([(r, (*both, *bonds, *ends)), (turned[near], moved)], aims)
    return turned
