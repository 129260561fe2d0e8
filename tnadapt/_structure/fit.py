"""The largest rank that a budget of trainable numbers allows."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping

from tnadapt._errors import SiteError
from tnadapt._hosts import Site, check_size, expect_sites
from tnadapt._language import Adapter, count
from tnadapt._signature import answers
from tnadapt.families import SpecLike, spec_of

__all__ = ["fit_rank"]


@answers(SiteError)
def fit_rank(
    spec: SpecLike, sites: Iterable[Site] | Site, *, trainable: int, sizes: Mapping[str, int] | None = None
) -> int:
    """The largest rank, the same for every bond, with which these sites train at most `trainable` numbers.

    `spec` may be a family's name or the family itself. At most the longest axis among the sites; of ranks that `caps`
    cut to the same networks, the smallest.
    Raises SiteError where rank 1 trains more already, the spec has no bond, or the budget is no integer.
    """
    table, places = spec_of(spec, "fit_rank"), expect_sites(sites, "fit_rank")
    check_size(f"{table.name}: the budget of trainable numbers", trainable)
    if not set(table.bonds) - set(sizes or {}):
        raise SiteError(f"{table.name}: has no bond whose size is free, so that its rank cannot be fitted.")

    def bound(rank: int) -> Adapter:
        return table.bind(places, rank=rank, sizes=sizes, overparametrized=True)

    if (least := count(bound(1)).trainable) > trainable:
        raise SiteError(
            f"{table.name}: rank 1 trains {least:,} numbers at these {len(places)} sites.\n"
            f"However, the budget is {trainable:,}.\nRaise it, or adapt fewer sites."
        )
    ranks = range(1, max(max(site.shape) for site in places) + 1)
    best = ranks[bisect_right(ranks, trainable, key=lambda rank: count(bound(rank)).trainable) - 1]
    reached = bound(best).networks
    return ranks[bisect_left(ranks, True, hi=best, key=lambda rank: bound(rank).networks == reached)]
