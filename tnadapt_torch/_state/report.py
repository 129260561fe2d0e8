"""What a user reads about an attached adapter: its sites, how they run, and how many parameters the host trains."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from tnadapt import Site, SiteError, count, plan
from tnadapt.binding import as_integer, mistake, told
from tnadapt_torch._host import count_parameters, updates_of
from tnadapt_torch._run import MagnitudeUpdate, SiteUpdate
from tnadapt_torch._state.known import states_of
from tnadapt_torch._state.log import log_of
from tnadapt_torch._state.norms import norms
from tnadapt_torch._state.replicas import settle
from tnadapt_torch._state.step import note_of_step

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []


class Readable(nn.Module):
    """The part of an adapter's state that users read."""

    def print_trainable_parameters(self) -> None:
        """Print one line on the host with all its adapters: trainable and all parameters, with the frozen factors.

        A host that is a part of another adapted model is counted as that whole model. Below it, once, what to do about
        a first step that is more than 8 times that of a LoRA at the same rate.
        """
        state = cast("AdapterState", self)
        print("\n".join(filter(None, [_totals(state), note_of_step(state)])))

    def norms(self) -> dict[str, float]:
        """Compute the Frobenius norm of each trainable factor, by its name in the spec, and of all updates, as "dW".

        The norm of a factor is over all groups, and that of dW over all sites, computed from the factors, in float64,
        for all sites of a group at once; only for a centered spec from dense updates, one site at a time.
        """
        state = cast("AdapterState", self)
        settle(state)
        if state.host:
            state.check_host()
        return norms(state.adapter, state.params(), state.updates)

    def log(self, optimizer: torch.optim.Optimizer | None = None, *, by_group: bool = False) -> dict[str, float]:
        """Return what to log of a step, as a plain dict that wandb, TensorBoard and MLflow take.

        Call it after the optimizer's step and before the gradients are set to zero. It reads the device once, for all
        numbers together; the work is that of `norms`. If processes share the factors, call it on each.

        Args:
            optimizer: the optimizer of the factors, for "step/lora_rate".
            by_group: add the norms of each group of the adapter, which are many if each site is a group of its own.

        Returns:
            Numbers by name, each below "tnadapt_<adapter_name>/": "norm/dW" and "norm/A", the norms of all updates and
            of a factor A; "grad_norm/all" and "grad_norm/A", if there are gradients; "scale" and "rank/r", the means
            over the groups; "step/of_lora", how far a first step of Adam goes, as a multiple of that of a LoRA of rank
            8 and alpha 8 at the same rate; "step/lora_rate", the rate of such a LoRA for this step, at the present
            rates of the optimizer; "groups/<group>/norm_dW" and "groups/<group>/grad_norm".

        Raises:
            SiteError: as `norms` raises it.
        """
        state = cast("AdapterState", self)
        settle(state)
        if state.host:
            state.check_host()
        return log_of(state, optimizer.param_groups if optimizer else [], by_group=by_group)

    def table(self) -> str:
        """Return a table of the adapted sites, one line per site."""
        return _table(cast("AdapterState", self))

    def explain(self, tokens: int = 1024, *, training: bool = True) -> str:
        """Return a table of how each site runs now, in a call of so many tokens outside torch.compile.

        An update is added to the output of its layer, or the layer is called with it in the weight, x (W + dW), where
        that is cheaper; a convolution may stand for a frozen `cyclic()` factor. The flops are those of the update in
        the forward pass, beside the product of the layer itself and the lengths of rows. In a block of `fixed()` it
        says whether products of factors are made for all sites at once in training, or why not; their flops are not
        counted.

        Args:
            tokens: how many rows x has. One plan serves a range of tokens; the table names the tokens it is made for,
                and has the flops at those.
            training: whether the call needs gradients, of the factors and of x.

        Raises:
            SiteError: `tokens` is not a positive integer, or the adapter is detached.
        """
        number = as_integer(tokens)
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise mistake(SiteError, "explain", "a positive integer as tokens", told(tokens), "Write tokens=1024.")
        return _explanation(cast("AdapterState", self), number, training=training)

    def __repr__(self) -> str:
        """Return one line: the spec, sites, groups, ranks, scale, counts, and whether the adapter is in use."""
        return _line(cast("AdapterState", self))


def _line(state: "AdapterState") -> str:
    adapter = state.adapter
    networks = [group.network for group in adapter.groups]
    counts = count(adapter)
    parts = [
        f"{state.spec.name} {state.name!r}",
        adapter.extent,
        *(f"{bond}={_range([network.sizes[bond] for network in networks])}" for bond in state.spec.bonds),
        f"scale={_range([network.scale for network in networks])}",
        f"{counts.trainable:,} trained" + (f" and {counts.frozen:,} frozen" if counts.frozen else ""),
    ]
    if state.saved.modules:
        parts.append(f"modules_to_save: {', '.join(state.saved.modules)}")
    if len(state.tasks) > 1:
        parts.append(f"task {state.task!r}")
    return f"AdapterState({', '.join([*parts, _use(state)])})"


def _use(state: "AdapterState") -> str:
    """Return in one or two words whether an adapter is in use."""
    if not state.host:
        return "detached" if state.turn else "under PEFT"
    return "merged" if state.merged is not None else "active" if state.enabled else "disabled"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g}..{high:.4g}"


def _totals(state: "AdapterState") -> str:
    host = _outermost(state)
    trained = sum(parameter.numel() for parameter in host.parameters() if parameter.requires_grad)
    whole = count_parameters(host)
    whole += sum(value.numel() for each in states_of(host) for value in each.factors.buffers())
    return f"trainable params: {trained:,} || all params: {whole:,} || trainable%: {100 * trained / whole:.4f}"


def _outermost(state: "AdapterState") -> nn.Module:
    """Return the largest adapted model that the host of an adapter is a part of, so that all adapters count alike."""
    host = state.model
    hosts = [other.model for other in states_of(host) if any(module is host for module in other.model.modules())]
    return max(hosts, key=lambda model: sum(1 for _ in model.modules()))


def _table(state: "AdapterState") -> str:
    rows = [("path", "layer", "kind", "weight", "module")]
    for site in state.adapter.sites:
        module = type(state.weights[site.weight].module).__name__
        weight = " x ".join(map(str, site.shape))
        rows.append((site.path, str(site.coordinates["layer"]), str(site.coordinates["kind"]), weight, module))
    return "\n".join([*_aligned(rows), *([state.adapter.sharing] if state.adapter.sharing else [])])


def _explanation(state: "AdapterState", tokens: int, *, training: bool) -> str:
    _ = state.model
    planned = 1
    rows: list[tuple[str, ...]] = []
    for site in state.adapter.sites:
        update = state.updates[site.path]
        single = update.below if isinstance(update, MagnitudeUpdate) else cast("SiteUpdate", update)
        order = single.order(tokens, training=training)
        planned = order.tokens
        flops = 0
        if not (how := _idle(state, site)):
            module = state.weights[site.weight].module
            is_inside = updates_of(module) == (update,) and single.runs_inside(module, order)
            how = "added to the output" + (", by a convolution" if order.convolutions else "")
            flops = order.cost.forward
            if training and state.joint is not None and isinstance(update, SiteUpdate):
                words, rest = update.sharing(tokens)
                how, flops = f"{how}, {words}", flops if rest is None else rest
            if is_inside or site.weight in state.folded:
                how = "in the weight, x (W + dW)" + (", by fold=True" if site.weight in state.folded else "")
                flops = plan(single.network, ask="delta").cost.forward
        rows.append((site.path, how, f"{flops:,}"))
    title = ("path", "update", f"flops at {planned:,} token{'s' * (planned > 1)}")
    return "\n".join([f"a call of {tokens:,} tokens, planned for {planned:,}", *_aligned([title, *rows])])


def _idle(state: "AdapterState", site: Site) -> str:
    """Return why the update of a site is not computed in a call; "" if it is."""
    if state.merged is not None:
        return "none: merged into the weight"
    if not state.enabled:
        return "none: disabled"
    return "" if site.coordinates.get("task", state.task) == state.task else "none: of another task"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
