"""What an adapter can and cannot do, and what it takes, before a number of it exists; and several side by side."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard

from tnadapt._errors import PlanError, SiteError
from tnadapt._files import file_size
from tnadapt._language import Adapter, Group, Network, ParamCount, count, expect_adapter
from tnadapt._planning import plan
from tnadapt._signature import answers
from tnadapt._structure import Cut, Freedom, degrees_of_freedom, first_gradients, generic_rank, minimum_cut
from tnadapt._table import align, to_markdown

__all__ = ["Comparison", "NetworkReport", "Report", "compare", "report"]

DTYPES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
TOKENS = 1024
LIMIT = 600
UNKNOWN = "-"


@dataclass(frozen=True)
class NetworkReport:
    """What holds for each of the groups that have one network, and sites at the same places of it.

    Flops and bytes are those of one site and one token.

    Args:
        groups: their names.
        sites: how many sites they have together.
        weight: shape of one weight, out axis first.
        trainable: numbers that one group trains.
        rank: the bound on the rank of one update, with its cut.
        generic_rank: the rank at generic values; None where that is too much work.
        full_rank: whether the bound allows what the weight's shape allows.
        freedom: degrees of freedom of one group; None where that is too much work.
        forward_flops: what the adapter adds to the forward pass.
        backward_flops: what it adds to the backward pass.
        host_flops: what the frozen weight takes in each of the two passes.
        saved_bytes: x and intermediates kept for the backward pass, in float32.
    """

    groups: tuple[str, ...]
    sites: int
    weight: tuple[int, ...]
    trainable: int
    rank: Cut
    generic_rank: int | None
    full_rank: bool
    freedom: Freedom | None
    forward_flops: float
    backward_flops: float
    host_flops: int
    saved_bytes: float


@dataclass(frozen=True)
class Report:
    """An adapter's counts, ranks, freedom and costs. Flops and saved bytes are averages over `tokens` tokens.

    `first_gradients` are the factors that move in the first step; `file_size` is that of the file in float32.
    """

    adapter: Adapter
    tokens: int
    count: ParamCount
    first_gradients: tuple[str, ...]
    file_size: int
    networks: tuple[NetworkReport, ...]

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of the trainable numbers in each dtype."""
        return {dtype: size * self.count.trainable for dtype, size in DTYPES.items()}

    def _kept(self) -> str:
        """What becomes of the frozen numbers in a file."""
        kept = sum(row.entries for row in self.count.rows if row.stored and not row.trainable)
        return f"of which {kept:,} are in the file" if kept else "drawn again from the seed"

    @property
    def frozen_bytes(self) -> dict[str, int]:
        """Bytes of the frozen numbers in each dtype; they are held in memory; most are not in the file."""
        return {dtype: size * self.count.frozen for dtype, size in DTYPES.items()}

    @property
    def freedom(self) -> Freedom | None:
        """Degrees of freedom of the whole adapter, if known for every network."""
        parts = [(len(net.groups), net.freedom) for net in self.networks]
        if any(part is None for _, part in parts):
            return None
        degrees = sum(times * part.degrees for times, part in parts if part is not None)
        return Freedom(self.count.trainable, degrees)

    @property
    def forward_share(self) -> float:
        """Flops that the adapter adds to the forward pass, over those of the adapted weights themselves."""
        return self._total("forward_flops") / self._total("host_flops")

    @property
    def backward_share(self) -> float:
        """The same for the backward pass, where a frozen weight takes one product, that of the gradient of x."""
        return self._total("backward_flops") / self._total("host_flops")

    @property
    def saved_bytes(self) -> float:
        """Bytes a token that all sites keep for the backward pass, in float32."""
        return self._total("saved_bytes")

    def _total(self, what: str) -> float:
        return float(sum(net.sites * getattr(net, what) for net in self.networks))

    def factors(self) -> list[list[str]]:
        """The table of the factors: a head, and a row for each factor and shape, entries of one times how many."""
        times: dict[tuple[str, ...], int] = {}
        for row in self.count.rows:
            kind = "trainable" if row.trainable else "frozen"
            shape = " x ".join(map(str, row.shape)) or "scalar"
            key = (row.name.removeprefix(f"{row.group}."), kind, " ".join(row.modes), shape, f"{row.entries:,}")
            times[key] = times.get(key, 0) + 1
        body = [[*key[:-1], f"{key[-1]} x {often}" if often > 1 else key[-1]] for key, often in times.items()]
        return [["factor", "kind", "modes", "shape", "entries"], *body]

    def rows(self) -> list[list[str]]:
        """The table of the networks: a head, and a row each."""
        head = ["network", "sites", "weight", "trains", "rank", "generic", "full rank", "free", "gauge"]
        head += ["flops/token", "% of host", "saved B/token"]
        body = []
        for net in self.networks:
            flops = (net.forward_flops + net.backward_flops, 2 * net.host_flops)
            body.append(
                [
                    net.groups[0] if len(net.groups) == 1 else f"{net.groups[0]} (of {len(net.groups)})",
                    f"{net.sites:,}",
                    " x ".join(map(str, net.weight)),
                    f"{net.trainable:,}",
                    f"<= {net.rank}",
                    UNKNOWN if net.generic_rank is None else f"{net.generic_rank:,}",
                    "possible" if net.full_rank else "no",
                    UNKNOWN if net.freedom is None else f"{net.freedom.degrees:,}",
                    UNKNOWN if net.freedom is None else f"{net.freedom.gauge:,}",
                    f"{flops[0]:,.0f}",
                    f"{100 * flops[0] / flops[1]:.2f}",
                    f"{net.saved_bytes:,.0f}",
                ]
            )
        return [head, *body]

    def facts(self) -> list[tuple[str, str]]:
        """What holds for the whole adapter: a name and a text each."""
        known = self.freedom
        return [
            ("trainable", f"{self.count.trainable:,} = {self.count.formula}, summed over the groups"),
            ("frozen", f"{self.count.frozen:,}, {self._kept()}"),
            ("bytes", ", ".join(f"{dtype} {size:,}" for dtype, size in self.bytes.items())),
            ("file", f"{self.file_size:,} bytes in float32"),
            ("degrees of freedom", UNKNOWN if known is None else str(known)),
            ("moves first", ", ".join(self.first_gradients) or "nothing: no factor gets a gradient at the start"),
            (
                "flops",
                f"forward +{100 * self.forward_share:.2f} %, backward +{100 * self.backward_share:.2f} % "
                f"of the adapted weights' own, at {self.tokens:,} tokens",
            ),
            ("saved", f"{self.saved_bytes:,.0f} bytes a token for the backward pass, in float32"),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        known = self.freedom
        head, *factors = self.factors()
        return {
            "spec": self.adapter.spec.name,
            "sites": len(self.adapter.sites),
            "groups": len(self.adapter.groups),
            "tokens": self.tokens,
            "trainable": self.count.trainable,
            "frozen": self.count.frozen,
            "formula": self.count.formula,
            "by_group": self.count.by_group(),
            "factors": [dict(zip(head, row, strict=True)) for row in factors],
            "bytes": self.bytes,
            "frozen_bytes": self.frozen_bytes,
            "file_size": self.file_size,
            "degrees_of_freedom": None if known is None else known.degrees,
            "gauge": None if known is None else known.gauge,
            "first_gradients": list(self.first_gradients),
            "forward_share": self.forward_share,
            "backward_share": self.backward_share,
            "saved_bytes": self.saved_bytes,
            "networks": [asdict(net) for net in self.networks],
        }

    def to_markdown(self) -> str:
        """Facts, factors and networks as three Markdown tables."""
        facts = to_markdown([("", self.adapter.spec.name), *self.facts()], numbers=2)
        return "\n\n".join([facts, to_markdown(self.factors(), numbers=4), to_markdown(self.rows())])

    def __str__(self) -> str:
        """The same as aligned text."""
        lines = [f"{self.adapter.spec.name}: {len(self.adapter.sites):,} sites in {len(self.adapter.groups):,} groups"]
        lines += align(self.facts())
        lines += [*align(self.factors()), *align(self.rows())]
        return "\n".join(lines)


@dataclass(frozen=True)
class Comparison:
    """Reports of several adapters side by side."""

    reports: tuple[Report, ...]

    def rows(self) -> list[list[str]]:
        """A head, and a row an adapter."""
        head = ["adapter", "rank asked", "trains", "frozen", "rank of dW", "full rank", "free", "fwd %", "bwd %"]
        head += ["saved B/token", "file B"]
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
                ]
            )
        return [head, *body]

    def to_dict(self) -> list[dict[str, Any]]:
        """The reports as plain data."""
        return [one.to_dict() for one in self.reports]

    def to_markdown(self) -> str:
        """One Markdown table."""
        return to_markdown(self.rows())

    def __str__(self) -> str:
        """One aligned table."""
        return "\n".join(align(self.rows(), indent=""))


def _asked(adapter: Adapter) -> str:
    rank = adapter.rank
    if rank is None:
        return UNKNOWN
    return str(rank) if isinstance(rank, int) else " ".join(f"{bond}={size}" for bond, size in rank.items())


@answers(SiteError)
def report(
    adapter: Adapter, *, tokens: int = TOKENS, limit: int = LIMIT, tell: Callable[[str], None] | None = None
) -> Report:
    """What an adapter can do and what it takes: counts, ranks, degrees of freedom, flops, bytes; nothing is drawn.

    Args:
        adapter: a spec bound to sites.
        tokens: how many tokens a call of a site has; plans and their costs depend on it.
        limit: as for `degrees_of_freedom`, which are left out above it; the default keeps it to seconds.
        tell: called with a few words before each longer piece of work, to show progress.

    Raises:
        PlanError: tokens that are no positive integer.
    """
    expect_adapter(adapter, "report")
    alike: dict[tuple[Network, object], list[Group]] = {}
    for group in adapter.groups:
        alike.setdefault((group.network, group.places), []).append(group)
    networks = []
    for (network, _), groups in alike.items():
        if tell is not None:
            tell(f"{adapter.spec.name}: ranks and degrees of freedom of {groups[0].name or 'the network'}")
        networks.append(_report_network(adapter, network, groups, tokens, limit))
    return Report(
        adapter=adapter,
        tokens=tokens,
        count=count(adapter),
        first_gradients=first_gradients(adapter.spec),
        file_size=file_size(adapter),
        networks=tuple(networks),
    )


@answers(SiteError)
def compare(
    *adapters: Adapter | Iterable[Adapter],
    tokens: int = TOKENS,
    limit: int = LIMIT,
    tell: Callable[[str], None] | None = None,
) -> Comparison:
    """The reports of several adapters as one table; they may come one by one, or in a list.

    Other arguments and errors as for `report`.
    """
    given = [one for some in adapters for one in (some if _is_collection(some) else [some])]
    found = [expect_adapter(one, "compare") for one in given]
    return Comparison(tuple(report(adapter, tokens=tokens, limit=limit, tell=tell) for adapter in found))


def _is_collection(given: object) -> TypeGuard[Iterable[Adapter]]:
    return isinstance(given, Iterable) and not isinstance(given, str)


def _report_network(adapter: Adapter, network: Network, groups: list[Group], tokens: int, limit: int) -> NetworkReport:
    order, cut = plan(network, tokens=tokens), minimum_cut(network)
    outer, inner = network.volume(network.out_modes), network.volume(network.in_modes)
    generic, freedom = None, None
    with suppress(PlanError):
        generic = generic_rank(adapter, groups[0].sites[0])
    with suppress(PlanError):
        freedom = degrees_of_freedom(adapter, groups[0], limit=limit)
    trained = [name for name, factor in network.factors.items() if factor.trainable]
    return NetworkReport(
        groups=tuple(group.name for group in groups),
        sites=sum(len(group.sites) for group in groups),
        weight=network.weight_shape,
        trainable=sum(network.volume(network.factors[name].held) for name in trained),
        rank=cut,
        generic_rank=generic,
        full_rank=cut.rank >= min(outer, inner),
        freedom=freedom,
        forward_flops=order.forward_flops / tokens,
        backward_flops=order.backward_flops / tokens,
        host_flops=2 * outer * inner,
        saved_bytes=DTYPES["float32"] * order.saved_elements / tokens,
    )
