"""Maps from a factor's parameters to its node in the network, and their pull-backs, in numpy.

A map acts on the last modes of a factor; all modes before them are batch modes.
"""

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SpecError, TnadaptError
from tnadapt._language import MAPS
from tnadapt._signature import mistake, told

__all__ = ["map_factor", "pull_back"]

Array = npt.NDArray[np.float64]


def map_factor(name: str, held: Array) -> Array:
    """Return the node of the network that a factor's parameters define. Without a map, return the parameters.

    rotation: angles t (...) -> [[cos t/2, -sin t/2], [sin t/2, cos t/2]] (..., 2, 2), a qubit's gate RY.
    householder: vectors v (..., n) -> 1 - 2 v v^T / |v|^2 (..., n, n); a zero vector gives the identity.
    cayley: matrices X (..., n, n) -> (1 - S) (1 + S)^-1 with S = X - X^T, orthogonal with determinant 1.
    Raises SpecError for an unknown name.
    """
    held = np.asarray(held)
    match name:
        case "rotation":
            cos, sin = np.cos(held / 2), np.sin(held / 2)
            return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
        case "householder":
            square = np.sum(held * held, axis=-1)[..., None, None]
            outer = held[..., :, None] * held[..., None, :]
            return np.asarray(np.eye(held.shape[-1]) - 2 * outer / np.where(square > 0, square, 1.0))
        case "cayley":
            turn, one = held - held.swapaxes(-1, -2), np.eye(held.shape[-1])
            return np.asarray(
                np.linalg.solve((one + turn).swapaxes(-1, -2), (one - turn).swapaxes(-1, -2)).swapaxes(-1, -2)
            )
        case "":
            return held
        case _:
            raise unknown_map(name)


def unknown_map(name: object) -> TnadaptError:
    """Return the error for an unknown map."""
    known = ", ".join(repr(one) for one in MAPS)
    return mistake(SpecError, "map_factor", f"one of {known}, or '' for none", told(name), "Take one of these.")


def pull_back(name: str, held: Array, gradient: Array) -> Array:
    """Return the gradient with respect to a factor's parameters, given the gradient with respect to its node.

    It has the shape of the parameters, and is 0 at a zero vector. Raises SpecError for an unknown name.
    """
    match name:
        case "rotation":
            cos, sin = np.cos(held / 2) / 2, np.sin(held / 2) / 2
            turned = np.stack([np.stack([-sin, -cos], -1), np.stack([cos, -sin], -1)], -2)
            return np.asarray(np.sum(turned * gradient, axis=(-1, -2)))
        case "householder":
            square = np.sum(held * held, axis=-1)[..., None]
            safe = np.where(square > 0, square, 1.0)
            both = gradient + gradient.swapaxes(-1, -2)
            along = np.einsum("...ij,...j->...i", both, held)
            bent = np.sum(held * along, axis=-1)[..., None]
            return np.asarray(-2 * along / safe + 2 * bent * held / safe**2)
        case "cayley":
            turn, one = held - held.swapaxes(-1, -2), np.eye(held.shape[-1])
            inverse, value = np.linalg.inv(one + turn), map_factor("cayley", held)
            by_turn = -(one + value).swapaxes(-1, -2) @ gradient @ inverse.swapaxes(-1, -2)
            return np.asarray(by_turn - by_turn.swapaxes(-1, -2))
        case "":
            return gradient
        case _:
            raise unknown_map(name)
