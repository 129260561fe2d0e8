"""Report the counts, ranks, degrees of freedom, costs and first steps of an adapter before its arrays exist."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from tnadapt._errors import PlanError, SiteError
from tnadapt._files import file_size
from tnadapt._language import Adapter, Group, Network, ParamCount, count, expect_adapter, unknown_starts
from tnadapt._planning import plan
from tnadapt._signature import answers
from tnadapt._structure import (
    Cut,
    Freedom,
    StepSize,
    degrees_of_freedom,
    first_gradients,
    generic_rank,
    minimum_cut,
    step_size,
)
from tnadapt._table import align, to_markdown

__all__ = ["NetworkReport", "Report", "report"]

DTYPES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
TOKENS = 1024
LIMIT = 600
UNKNOWN = "-"
V = TypeVar("V")


@dataclass(frozen=True)
class NetworkReport:
    """The figures shared by all groups that have the same network and the same coordinates for their sites.

    Flops and bytes are per site and per token.

    Args:
        groups: the names of the groups.
        sites: the number of sites in all groups together.
        weight: the shape of one weight, out axis first.
        trainable: the number of trainable entries in one group.
        rank: the upper bound on the rank of one update, with its cut.
        generic_rank: the rank at generic values; None if it is too expensive to compute.
        full_rank: whether the bound permits the largest rank that the weight's shape permits.
        freedom: the degrees of freedom of one group; None if they are too expensive to compute.
        forward_flops: the flops that the adapter adds to the forward pass.
        backward_flops: the flops that the adapter adds to the backward pass.
        host_flops: the flops of the frozen weight in each of the two passes.
        saved_bytes: the bytes of x and of the intermediates kept for the backward pass, in float32.
        step: how far the first step of an optimizer goes; None where starting values are read from the host.
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
    step: StepSize | None


@dataclass(frozen=True)
class Report:
    """The counts, ranks, degrees of freedom and costs of an adapter.

    Flops and saved bytes are averages over `tokens` tokens. `first_gradients` are the factors that the first training
    step changes, `file_size` that of the file in float32, `joined` the freedom of groups that share a trained factor.
    """

    adapter: Adapter
    tokens: int
    count: ParamCount
    first_gradients: tuple[str, ...]
    file_size: int
    networks: tuple[NetworkReport, ...]
    joined: Freedom | None = None

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of the trainable entries in each dtype."""
        return {dtype: size * self.count.trainable for dtype, size in DTYPES.items()}

    def _kept(self) -> str:
        """Say how many frozen entries the file stores."""
        kept = sum(row.entries for row in self.count.rows if row.stored and not row.trainable)
        return f"of which {kept:,} are in the file" if kept else "regenerated from the seed"

    @property
    def frozen_bytes(self) -> dict[str, int]:
        """Bytes of the frozen entries in each dtype. They are held in memory; the file stores few of them."""
        return {dtype: size * self.count.frozen for dtype, size in DTYPES.items()}

    @property
    def freedom(self) -> Freedom | None:
        """Degrees of freedom of the whole adapter; None if they are not known."""
        if self.adapter.joined:
            return self.joined
        parts = [(len(net.groups), net.freedom) for net in self.networks]
        if any(part is None for _, part in parts):
            return None
        degrees = sum(times * part.degrees for times, part in parts if part is not None)
        return Freedom(self.count.trainable, degrees)

    @property
    def forward_share(self) -> float:
        """Flops that the adapter adds to the forward pass, divided by the flops of the adapted weights."""
        return self._total("forward_flops") / self._total("host_flops")

    @property
    def backward_share(self) -> float:
        """The same for the backward pass. There a frozen weight takes one product, for the gradient of x."""
        return self._total("backward_flops") / self._total("host_flops")

    @property
    def saved_bytes(self) -> float:
        """Bytes per token that all sites together keep for the backward pass, in float32."""
        return self._total("saved_bytes")

    def _total(self, what: str) -> float:
        return float(sum(net.sites * getattr(net, what) for net in self.networks))

    @property
    def steps(self) -> tuple[float, ...]:
        """The first steps of the networks in ascending order, as multiples of LoRA's of rank 8 with alpha 8."""
        return tuple(sorted(net.step.of_lora for net in self.networks if net.step is not None))

    def _first_step(self) -> str:
        """Say how far a step of Adam moves an entry of dW, and how far that of LoRA."""
        if not self.steps:
            return f"{UNKNOWN}: starting values are read from the host's weights"
        formulas = dict.fromkeys(net.step.formula for net in self.networks if net.step is not None)
        return f"{span(self.steps)} of LoRA's (rank 8, alpha 8); an entry moves by lr x {', '.join(formulas)}"

    def factors(self) -> list[list[str]]:
        """Return the table of factors: a header, then one row per factor and shape, as entries of one x occurrences."""
        times: dict[tuple[str, ...], int] = {}
        for row in self.count.rows:
            kind = "trainable" if row.trainable else "frozen"
            shape = " x ".join(map(str, row.shape)) or "scalar"
            key = (row.name.removeprefix(f"{row.group}."), kind, " ".join(row.modes), shape, f"{row.entries:,}")
            times[key] = times.get(key, 0) + 1
        body = [[*key[:-1], f"{key[-1]} x {often}" if often > 1 else key[-1]] for key, often in times.items()]
        return [["factor", "kind", "modes", "shape", "entries"], *body]

    def rows(self) -> list[list[str]]:
        """Return the table of networks: a header, then one row per network."""
        head = ["network", "sites", "weight", "trains", "rank", "generic", "full rank", "free", "gauge"]
        head += ["flops/token", "% of host", "saved B/token", "step"]
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
                    UNKNOWN if net.step is None else f"{net.step.of_lora:.2g}",
                ]
            )
        return [head, *body]

    def facts(self) -> list[tuple[str, str]]:
        """Return the figures of the whole adapter as pairs of a name and a text."""
        known = self.freedom
        return [
            ("trainable", f"{self.count.trainable:,} = {self.count.formula}, summed over the groups"),
            ("frozen", f"{self.count.frozen:,}, {self._kept()}"),
            ("bytes", ", ".join(f"{dtype} {size:,}" for dtype, size in self.bytes.items())),
            ("file", f"{self.file_size:,} bytes in float32"),
            ("degrees of freedom", UNKNOWN if known is None else str(known)),
            ("first gradients", ", ".join(self.first_gradients) or "none: no factor gets a gradient at the start"),
            (
                "flops",
                f"forward +{100 * self.forward_share:.2f} %, backward +{100 * self.backward_share:.2f} % "
                f"of the adapted weights' own, at {self.tokens:,} tokens",
            ),
            ("saved", f"{self.saved_bytes:,.0f} bytes per token for the backward pass, in float32"),
            ("first step", self._first_step()),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data that JSON can hold."""
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
            "networks": [_plain(net) for net in self.networks],
        }

    def to_markdown(self) -> str:
        """Return three Markdown tables: the whole adapter, its factors and its networks."""
        facts = to_markdown([("", self.adapter.spec.name), *self.facts()], numbers=2)
        return "\n\n".join([facts, to_markdown(self.factors(), numbers=4), to_markdown(self.rows())])

    def __str__(self) -> str:
        """Return the same tables as aligned text."""
        lines = [f"{self.adapter.spec.name}: {self.adapter.extent}"]
        return "\n".join([*lines, *align(self.facts()), *align(self.factors()), *align(self.rows())])


@answers(SiteError)
def report(
    adapter: Adapter, *, tokens: int = TOKENS, limit: int = LIMIT, tell: Callable[[str], None] | None = None
) -> Report:
    """Report what an adapter can do and what it costs, without drawing any values.

    Args:
        adapter: a spec bound to sites.
        tokens: the number of tokens in one call of a site. Plans and their costs depend on it.
        limit: as for `degrees_of_freedom`, which are omitted above it. The default keeps the call to seconds.
        tell: called with a short text before each longer computation, to show progress.

    Returns:
        The counts, ranks, degrees of freedom, flops and bytes.

    Raises:
        PlanError: if `tokens` is not a positive integer.
    """
    expect_adapter(adapter, "report")
    alike: dict[tuple[Network, object], list[Group]] = {}
    for group in adapter.groups:
        alike.setdefault((group.network, group.places), []).append(group)
    networks, steps = [], {} if unknown_starts(adapter.spec) else step_size(adapter)
    for (network, _), groups in alike.items():
        if tell is not None:
            tell(f"{adapter.spec.name}: ranks and degrees of freedom of {groups[0].name or 'the network'}")
        networks.append(_report_network(adapter, network, groups, tokens, limit, step=steps.get(groups[0].name)))
    return Report(
        adapter=adapter,
        tokens=tokens,
        count=count(adapter),
        first_gradients=first_gradients(adapter.spec),
        file_size=file_size(adapter),
        networks=tuple(networks),
        joined=_affordable(lambda: degrees_of_freedom(adapter, limit=limit)) if adapter.joined else None,
    )


def _plain(net: NetworkReport) -> dict[str, Any]:
    """Return the figures of a network as plain data; of the first step, all but mappings that JSON cannot hold."""
    step = net.step
    found = asdict(replace(net, step=None))
    if step is not None:
        found["step"] = {
            "update": step.update,
            "output": step.output,
            "of_lora": step.of_lora,
            "formula": step.formula,
            "rates": dict(step.rates),
        }
    return found


def span(values: tuple[float, ...]) -> str:
    """Return a text such as 0.61, or 0.61 to 1.2 if the ascending values are not the same."""
    ends = [f"{value:.2g}" for value in (values[0], values[-1])]
    return " to ".join(dict.fromkeys(ends))


def _report_network(
    adapter: Adapter, network: Network, groups: list[Group], tokens: int, limit: int, *, step: StepSize | None
) -> NetworkReport:
    order, cut = plan(network, tokens=tokens), minimum_cut(network)
    outer, inner = network.volume(network.out_modes), network.volume(network.in_modes)
    trained = [name for name, factor in network.factors.items() if factor.trainable]
    return NetworkReport(
        groups=tuple(group.name for group in groups),
        sites=sum(len(group.sites) for group in groups),
        weight=network.weight_shape,
        trainable=sum(network.volume(network.factors[name].held) for name in trained),
        rank=cut,
        generic_rank=_affordable(lambda: generic_rank(adapter, groups[0].sites[0])),
        full_rank=cut.rank >= min(outer, inner),
        freedom=_affordable(lambda: degrees_of_freedom(adapter, groups[0], limit=limit)),
        forward_flops=order.forward_flops / tokens,
        backward_flops=order.backward_flops / tokens,
        host_flops=2 * outer * inner,
        saved_bytes=DTYPES["float32"] * order.saved_elements / tokens,
        step=step,
    )


def _affordable(ask: Callable[[], V]) -> V | None:
    """Return the answer, or None if it is too expensive to compute."""
    with suppress(PlanError):
        return ask()
    return None
