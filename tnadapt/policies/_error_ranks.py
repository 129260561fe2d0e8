"""LoSA's ranks: layers that pruning hurt more get more of a given sum of ranks."""

import math
from collections.abc import Mapping

from tnadapt._errors import SiteError
from tnadapt._signature import answers, mistake, told
from tnadapt.policies._checks import expect_count

__all__ = ["ranks_from_errors"]

WHERE = "ranks_from_errors"


@answers(SiteError)
def ranks_from_errors(errors: Mapping[str, float], mean: int, low: int = 1, high: int = 16) -> dict[str, int]:
    """Return a rank for each layer in proportion to its error, with a given mean, as LoSA sets them (arXiv:2502.14816).

    r_l = clip(round(e_l / sum(e) mean L), low, high); then ranks rise by 1 from the largest error on, or fall by 1 from
    the smallest on, until their sum is mean L. LoSA's e_l is the squared error of the layer's output after pruning,
    over the dense output's norms of columns; any error serves. Its mean rises from 6 to 10 over five rounds.

    Args:
        errors: the error of each layer, by the name of its module, so that the ranks can be passed to `bind` as `rank`.
        mean: the mean rank.
        low: the smallest rank.
        high: the largest rank.

    Raises:
        SiteError: there are no errors, all are 0, one is negative or not finite, or the mean is not between the limits.
    """
    if not isinstance(errors, Mapping) or not errors:
        raise mistake(SiteError, WHERE, "the error of at least one layer", told(errors), "Pass name -> error.")
    values = {name: float(value) for name, value in errors.items()}
    if odd := [name for name, value in values.items() if not (math.isfinite(value) and value >= 0)]:
        raise SiteError(f"{WHERE}: expected errors of at least 0, got {values[odd[0]]} for {odd[0]!r}.")
    total = math.fsum(values.values())
    if total == 0:
        raise SiteError(f"{WHERE}: expected an error above 0, got 0 for each of {len(values)} layers.")
    low, high = expect_count(low, WHERE, "low", 1), expect_count(high, WHERE, "high", 1)
    mean = expect_count(mean, WHERE, "mean", 1)
    if not low <= mean <= high:
        raise SiteError(f"{WHERE}: expected a mean from {low} to {high}, the limits of a rank, got {mean}.")
    wanted = mean * len(values)
    ranks = {name: min(max(round(value / total * wanted), low), high) for name, value in values.items()}
    order = sorted(values, key=lambda name: (-values[name], name))
    while (missing := wanted - sum(ranks.values())) != 0:
        able = [name for name in order if (ranks[name] < high if missing > 0 else ranks[name] > low)]
        for name in able[:missing] if missing > 0 else able[missing:]:
            ranks[name] += 1 if missing > 0 else -1
    return ranks
