"""Dynamic programming over the ways to split tensors in two: the search that the exact and the fast one share."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tnadapt._planning.cost import Objective
from tnadapt._planning.tensors import Numbers, Tensors

__all__: list[str] = []


@dataclass(frozen=True)
class Splits:
    """Candidate steps, whose costs are computed at once: `left` and `right` make `whole`.

    `layers` gives runs of them in the order in which they are decided: the wholes of a layer, and where its steps
    start. Each whole of a layer has the same number of steps, one after another.
    """

    left: Numbers
    right: Numbers
    whole: Numbers
    layers: tuple[tuple[Numbers, int], ...]


def splits_of(layers: Iterable[tuple[Numbers, Numbers, Numbers]]) -> Splits:
    """Return the splits of layers. Each is wholes, left and right sides. shape: (wholes), (wholes, steps) twice."""
    parts = list(layers)
    ends = np.cumsum([left.size for _, left, _ in parts])
    return Splits(
        np.concatenate([left.ravel() for _, left, _ in parts]),
        np.concatenate([right.ravel() for _, _, right in parts]),
        np.concatenate([np.repeat(wholes, left.shape[1]) for wholes, left, _ in parts]),
        tuple((wholes, int(end) - left.size) for (wholes, left, _), end in zip(parts, ends, strict=True)),
    )


def best_left_sides(tensors: Tensors, groups: Iterable[Splits], objective: Objective) -> Numbers:
    """Return the left side of the cheapest split of each tensor; the first one among equals. Operands have 0."""
    best = np.zeros(len(tensors.size))
    chosen = np.zeros(len(tensors.size), dtype=np.int64)
    for splits in groups:
        terms = tensors.terms(splits.left, splits.right, splits.whole, objective)
        ends = [start for _, start in splits.layers[1:]] + [len(splits.left)]
        for (wholes, start), end in zip(splits.layers, ends, strict=True):
            left = splits.left[start:end]
            total = best[left] + best[splits.right[start:end]]
            for term in terms:
                total += term[start:end]
            rows = total.reshape(len(wholes), -1)
            winner = np.argmin(rows, axis=1)
            places = np.arange(len(wholes))
            best[wholes] = rows[places, winner]
            chosen[wholes] = left.reshape(len(wholes), -1)[places, winner]
    return chosen
