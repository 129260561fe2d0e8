"""What a user reads about an attached adapter: its sites, how they run, and how many parameters the host trains."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import nn

from tnadapt import Site, SiteError, count, plan
from tnadapt.binding import as_integer, mistake, told
from tnadapt_torch._host import count_parameters, updates_of
from tnadapt_torch._run import MagnitudeUpdate, SiteUpdate
from tnadapt_torch._state.known import states_of
from tnadapt_torch._state.step import note_of_step

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []


class Readable(nn.Module):
    """The part of an adapter's state that users read."""

    def print_trainable_parameters(self) -> None:
        """Print one line on the host with all its adapters: trainable and all parameters, with the frozen factors.

        Below it, once, what to do about a first step that is more than 8 times that of a LoRA at the same rate.
        """
        state = cast("AdapterState", self)
        print("\n".join(filter(None, [_totals(state), note_of_step(state)])))

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

    def extra_repr(self) -> str:
        """Return the spec, the number of sites and the parameter count, for print(model)."""
        state = cast("AdapterState", self)
        of, trained = state.adapter, count(state.adapter).trainable
        return f"{of.spec.name}, name={state.name!r}, sites={len(of.sites)}, trainable={trained:,}"


def _totals(state: "AdapterState") -> str:
    host = state.model
    trained = sum(parameter.numel() for parameter in host.parameters() if parameter.requires_grad)
    whole = count_parameters(host)
    whole += sum(value.numel() for each in states_of(host) for value in each.factors.buffers())
    return f"trainable params: {trained:,} || all params: {whole:,} || trainable%: {100 * trained / whole:.4f}"


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
