"""The starts of alternating least squares: leading directions of the updates, random ones, and that of training."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np

from tnadapt._compression.least_squares import Factors, Problem, improve_factor
from tnadapt._values import Array, Modes, contract, primed

__all__: list[str] = []

STARTS = 4
OVERSAMPLED, ROUNDS = 16, 3  # of the subspace iteration
SKETCH = "(sketch)"


def tries_of(
    problem: Problem, factors: Mapping[str, Array], count: int | None, seed: Sequence[int]
) -> Iterator[Factors]:
    """Yield `count` starts: the spectral one, that of training, then random ones.

    The default count is one if the factors form a tree or only one is trained, and four otherwise.
    """
    random = np.random.default_rng(seed)
    if count is None:
        count = 1 if problem.is_tree or len(problem.trainable) == 1 else STARTS
    yield spectral_start(problem, factors, random)
    if count > 1:
        yield trained_start(problem, factors)
    for _ in range(count - 2):
        yield random_start(problem, factors, random)


def random_start(problem: Problem, factors: Mapping[str, Array], random: np.random.Generator) -> Factors:
    """Draw every trained factor from a normal distribution, and solve for the first of them."""
    drawn = {name: random.standard_normal(problem.network.shape(name)) for name in problem.trainable}
    return improve_factor(problem, dict(factors) | drawn, problem.trainable[0])[0]


def spectral_start(problem: Problem, factors: Mapping[str, Array], random: np.random.Generator) -> Factors:
    """Start each leaf at the leading singular vectors of the updates along its modes. Draw the other trained factors.

    A leaf is a factor with one bond and with open modes that no other factor carries. For a Tucker network this is the
    truncated HOSVD, for a CP network the usual start from singular vectors.
    """
    start = dict(factors)
    for name in problem.trainable:
        own, bonds = _own_modes(problem, name)
        start[name] = random.standard_normal(problem.network.shape(name))
        if own and len(bonds) == 1:
            width = min(problem.network.volume(bonds), problem.network.volume(own))
            leading = _leading(problem, own, width, random)
            modes = problem.network.factors[name].modes
            others = tuple(mode for mode in modes if mode not in own and mode not in bonds)
            order = (*others, *own, *bonds)
            turned = start[name].transpose([modes.index(mode) for mode in order])
            filled = turned.reshape(-1, *turned.shape[len(others) :])
            filled[..., :width] = leading.reshape(*turned.shape[len(others) : -1], width)
            start[name] = filled.reshape(turned.shape).transpose([order.index(mode) for mode in modes])
    return improve_factor(problem, start, problem.trainable[0])[0]


def trained_start(problem: Problem, factors: Mapping[str, Array]) -> Factors:
    """Start at the starting values of training, and solve for a factor that is 0 there."""
    zeros = [name for name in problem.trainable if not np.any(factors[name])]
    return improve_factor(problem, dict(factors), zeros[0])[0] if zeros else dict(factors)


def _own_modes(problem: Problem, name: str) -> tuple[Modes, Modes]:
    """Return the open modes that only this factor carries, and its bonds."""
    factors = problem.network.factors
    others = {mode for other, factor in factors.items() if other != name for mode in factor.modes}
    modes = factors[name].modes
    outer = problem.open_modes
    return (
        tuple(mode for mode in modes if mode in outer and mode not in others),
        tuple(mode for mode in modes if mode not in outer),
    )


def _leading(problem: Problem, modes: Modes, count: int, random: np.random.Generator) -> Array:
    """Find the leading left singular vectors (modes, count) of the updates unfolded along some modes.

    Uses subspace iteration.
    """
    sizes = [problem.network.sizes[mode] for mode in modes]
    shared = set(problem.open_modes) - set(modes)
    rows = problem.network.volume(modes)
    width = min(count + OVERSAMPLED, rows)
    ends = tuple(f"{mode}'" for mode in modes)
    basis = np.linalg.qr(random.standard_normal((rows, width)))[0]
    for _ in range(ROUNDS):
        sketch = (basis.reshape(*sizes, width), (*ends, SKETCH))
        image = np.zeros((*sizes, width))
        for one, other in product(problem.terms, repeat=2):
            image = image + contract([*one, *primed(other, shared), sketch], (*modes, SKETCH))
        basis, before, image = np.linalg.qr(image.reshape(rows, width))[0], basis, image.reshape(rows, width)
    turn = np.linalg.eigh(before.T @ image)[1]
    return np.asarray(before @ turn[:, ::-1][:, :count])
