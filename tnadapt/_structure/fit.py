"""Find the largest rank that a budget of trainable numbers allows."""

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
    """Find the largest rank, the same for every bond, with which these sites train at most `trainable` numbers.

    `spec` may also be a family or its name. The rank is at most the longest axis among the sites. If `caps` cut several
    ranks to the same networks, the smallest of them is returned.
    Raises SiteError if rank 1 already trains more, if the spec has no free bond, or if the budget is not an integer.
    """
    table, places = spec_of(spec, "fit_rank"), expect_sites(sites, "fit_rank")
    check_size(f"{table.name}: the budget of trainable numbers", trainable)
    if not set(table.free_bonds) - set(sizes or {}):
        raise SiteError(f"{table.name}: expected a spec with a bond whose size is free, got none to fit.")

    def bound(rank: int) -> Adapter:
        return table.bind(places, rank=rank, sizes=sizes, overparametrized=True)

    if (least := count(bound(1)).trainable) > trainable:
        raise SiteError(
            f"{table.name}: expected a budget of at least {least:,} trainable numbers, which rank 1 needs at these "
            f"{len(places)} sites, got {trainable:,}.\nRaise it, or adapt fewer sites."
        )
    ranks = range(1, max(max(site.shape) for site in places) + 1)
    best = ranks[bisect_right(ranks, trainable, key=lambda rank: count(bound(rank)).trainable) - 1]
    reached = bound(best).networks
    return ranks[bisect_left(ranks, True, hi=best, key=lambda rank: bound(rank).networks == reached)]
