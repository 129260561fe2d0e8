"""Generic values of factors with a map, modulo a prime: what the map makes of random numbers."""

from collections.abc import Sequence

import numpy as np

from tnadapt._language import Factor
from tnadapt._structure.modular import PRIME, Budget, Residues, multiply, residues
from tnadapt._values import unknown_map

__all__: list[str] = []


def generic_node(factor: Factor, shape: Sequence[int], random: np.random.Generator, budget: Budget) -> Residues:
    """Draw the node of a factor at generic values. The numbers of a map are drawn again if it has no value there.

    Args:
        factor: the factor. Its map acts on the last modes; all modes before them are batch modes.
        shape: the shape of the node.
        random: draws the residues.
        budget: pays for the products and inverses of matrices.
    """
    if not factor.map:
        return residues(shape, random)
    while True:
        node, exists = _map(factor.map, shape, random, budget)
        if exists:
            return node


def _map(name: str, shape: Sequence[int], random: np.random.Generator, budget: Budget) -> tuple[Residues, bool]:
    """Return what a map makes of random residues, and whether all divisors had an inverse.

    rotation: t -> [[1 - t^2, -2 t], [2 t, 1 - t^2]] / (1 + t^2), with t for the tangent of a quarter of the angle.
    householder: v -> 1 - 2 v v^T / |v|^2. cayley: X -> (1 - S) (1 + S)^-1 with S = X - X^T.
    """
    one = np.eye(shape[-1], dtype=np.int64)
    match name:
        case "rotation":
            turn = residues(shape[:-2], random)
            square = turn * turn % PRIME
            divisor = (1 + square) % PRIME
            cos, sin = (1 - square) % PRIME, 2 * turn % PRIME
            node = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
            return node * _reciprocal(divisor)[..., None, None] % PRIME, bool(divisor.all())
        case "householder":
            vector = residues(shape[:-1], random)
            divisor = (vector * vector % PRIME).sum(-1) % PRIME
            scaled = vector * _reciprocal(divisor)[..., None] % PRIME
            return (one - 2 * (scaled[..., :, None] * vector[..., None, :] % PRIME)) % PRIME, bool(divisor.all())
        case "cayley":
            budget.spend(4 * int(np.prod(shape)) * shape[-1])
            held = residues(shape, random)
            turn = (held - held.swapaxes(-1, -2)) % PRIME
            inverse = _inverse((one + turn) % PRIME)
            exists = (multiply((one + turn) % PRIME, inverse) == one).all()
            return multiply((one - turn) % PRIME, inverse), bool(exists)
        case _:
            raise unknown_map(name)


def _reciprocal(value: Residues) -> Residues:
    """Return the inverse of each residue by Fermat, as its power p - 2; 0 for 0."""
    found, power, left = np.ones_like(value), value % PRIME, PRIME - 2
    while left:
        if left & 1:
            found = found * power % PRIME
        power, left = power * power % PRIME, left >> 1
    return found


def _inverse(matrix: Residues) -> Residues:
    """Return the inverses of matrices by halves. It is wrong where a leading minor is 0 modulo the prime."""
    half = matrix.shape[-1] // 2
    if not half:
        return _reciprocal(matrix)
    first = _inverse(matrix[..., :half, :half])
    right = multiply(first, matrix[..., :half, half:])
    left = multiply(matrix[..., half:, :half], first)
    last = _inverse((matrix[..., half:, half:] - multiply(matrix[..., half:, :half], right)) % PRIME)
    upper = -multiply(right, last) % PRIME
    return np.block(
        [[(first - multiply(upper, left)) % PRIME, upper], [-multiply(last, left) % PRIME, last]],
    )
