"""GeLoRA's ranks: the intrinsic dimension of the hidden states before each block says how much a block must change."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError
from tnadapt._hosts import Site, expect_sites
from tnadapt._signature import answers, mistake, told

__all__ = ["intrinsic_dimension", "ranks_from_dimensions"]

Array = npt.NDArray[np.float64]
FEWEST = 10  # points
ROWS = 256  # of the matrix of distances that are in memory at once
EXACT = 1e-9


@answers(SiteError)
def intrinsic_dimension(points: npt.ArrayLike) -> float:
    """Estimate the dimension of the manifold that points lie on, from their two nearest neighbours (TwoNN).

    The ratio mu = r2 / r1 of the distances to them has the density d mu^(-d - 1) (Facco et al. 2017,
    doi:10.1038/s41598-017-11873-y), so that d is about (N - 1) / sum log mu: the estimate of the largest likelihood,
    without its bias. With 2,000 points it spreads by 3 percent. On a manifold with a border it is too small, by 6
    percent for a cube of dimension 5. Copies of a point count once.

    Args:
        points: (points, coordinates), such as the hidden states of tokens before a block.

    Raises:
        SiteError: there are fewer than 10 different points, or a coordinate is not finite.
    """
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():  # noqa: PLR2004  (a matrix)
        todo = "Pass one finite row for each point: (points, coordinates)."
        raise mistake(SiteError, "intrinsic_dimension", "a matrix of finite numbers", told(points), todo)
    values = np.unique(values, axis=0)
    if len(values) < FEWEST:
        raise SiteError(f"intrinsic_dimension: expected at least {FEWEST} different points, got {len(values)}.")
    total = float(np.log(_ratios(values)).sum())
    if total == 0.0:
        raise SiteError(
            "intrinsic_dimension: expected points whose two nearest neighbours lie at different distances, got a "
            "lattice.\nPass hidden states of real inputs."
        )
    return (len(values) - 1) / total


def _ratios(points: Array) -> Array:
    """Return for each point the ratio of the distances to its second and its first neighbour."""
    from scipy.spatial.distance import cdist  # noqa: PLC0415  (a third of a second to import; few programs need it)

    found = []
    for first in range(0, len(points), ROWS):
        distances = cdist(points[first : first + ROWS], points)
        distances[np.arange(len(distances)), first + np.arange(len(distances))] = np.inf
        nearest = np.partition(distances, 1, axis=1)[:, :2]
        found.append(nearest[:, 1] / nearest[:, 0])
    return np.concatenate(found)


@answers(SiteError)
def ranks_from_dimensions(
    dimensions: Sequence[float], sites: Iterable[Site] | None = None
) -> dict[int, int] | dict[str, int]:
    """Return a rank for each block: max(d after it - d before it, 0) + 1, as GeLoRA sets them (arXiv:2412.09250).

    The bracket is the paper's lower bound for the rank that a block needs. What is no integer is rounded up, so that
    the bound holds.

    Args:
        dimensions: the intrinsic dimension of the hidden states before the first block, after it, and so on: one more
            than there are blocks.
        sites: adapted weights with the coordinate `layer`. The ranks then come by the path of the site, to be passed
            to `bind` or `attach` as `rank`.

    Returns:
        Block -> rank; or path -> rank.

    Raises:
        SiteError: there are fewer than two dimensions, one is negative or not finite, or a site has no such layer.
    """
    where = "ranks_from_dimensions"
    values = np.asarray(dimensions, dtype=np.float64)
    if values.ndim != 1 or len(values) <= 1 or not np.isfinite(values).all() or (values < 0).any():
        todo = "Pass the dimension before each block, and that after the last one."
        raise mistake(SiteError, where, "at least two dimensions from 0", told(dimensions), todo)
    steps = np.maximum(np.diff(values), 0.0)
    by_block = {block: math.ceil(step - EXACT) + 1 for block, step in enumerate(steps)}
    if sites is None:
        return by_block
    found: dict[str, int] = {}
    for site in expect_sites(sites, where):
        layer = site.coordinates.get("layer")
        if not isinstance(layer, int) or layer not in by_block:
            raise SiteError(
                f"{where}: expected sites with a layer from 0 to {len(by_block) - 1}, got {layer!r} at {site.path}.\n"
                "Pass one dimension more than there are layers."
            )
        found[site.path] = by_block[layer]
    return found
