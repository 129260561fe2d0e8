"""Compare several adapters by their reports."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from tnadapt._errors import SiteError
from tnadapt._language import Adapter, expect_adapter
from tnadapt._report.report import LIMIT, TOKENS, UNKNOWN, Report, report, span
from tnadapt._signature import answers
from tnadapt._table import align, to_markdown

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """The reports of several adapters, shown as one table."""

    reports: tuple[Report, ...]

    def rows(self) -> list[list[str]]:
        """Return a header, then one row per adapter."""
        head = ["adapter", "rank given", "trains", "frozen", "rank of dW", "full rank", "free", "fwd %", "bwd %"]
        head += ["saved B/token", "file B", "step"]
        body = []
        for one in self.reports:
            known, ranks = one.freedom, sorted({net.rank.rank for net in one.networks})
            body.append(
                [
                    one.adapter.spec.name,
                    _asked(one.adapter),
                    f"{one.count.trainable:,}",
                    f"{one.count.frozen:,}",
                    "<= " + (f"{ranks[0]:,}" if len(ranks) == 1 else f"{ranks[0]:,} to {ranks[-1]:,}"),
                    "possible" if all(net.full_rank for net in one.networks) else "no",
                    UNKNOWN if known is None else f"{known.degrees:,}",
                    f"{100 * one.forward_share:.2f}",
                    f"{100 * one.backward_share:.2f}",
                    f"{one.saved_bytes:,.0f}",
                    f"{one.file_size:,}",
                    span(one.steps) if one.steps else UNKNOWN,
                ]
            )
        return [head, *body]

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the reports as plain data."""
        return [one.to_dict() for one in self.reports]

    def to_markdown(self) -> str:
        """Return the comparison as one Markdown table."""
        return to_markdown(self.rows())

    def __str__(self) -> str:
        """Return the comparison as one aligned table."""
        return "\n".join(align(self.rows(), indent=""))


def _asked(adapter: Adapter) -> str:
    rank = adapter.rank
    if isinstance(rank, Mapping):
        return " ".join(f"{bond}={size}" for bond, size in rank.items())
    return UNKNOWN if rank is None else str(rank)


@answers(SiteError)
def compare(
    *adapters: Adapter | Iterable[Adapter],
    tokens: int = TOKENS,
    limit: int = LIMIT,
    tell: Callable[[str], None] | None = None,
) -> Comparison:
    """Return the reports of several adapters as one table.

    Args:
        adapters: the adapters, one by one or in lists.
        tokens: as for `report`.
        limit: as for `report`.
        tell: as for `report`.

    Raises:
        PlanError: as for `report`.
    """
    given = [one for some in adapters for one in (some if _is_collection(some) else [some])]
    found = [expect_adapter(one, "compare") for one in given]
    return Comparison(tuple(report(adapter, tokens=tokens, limit=limit, tell=tell) for adapter in found))


def _is_collection(given: object) -> TypeGuard[Iterable[Adapter]]:
    return isinstance(given, Iterable) and not isinstance(given, str)
