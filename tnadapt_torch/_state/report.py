"""What a user reads about an attached adapter: a table of its sites, and how many parameters the host trains."""

from typing import TYPE_CHECKING

from tnadapt_torch._state.known import states_of

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []


def totals(state: "AdapterState") -> str:
    """Return one line on the host with all its adapters: trainable and all parameters, frozen factors included."""
    host = state.model
    trained = sum(parameter.numel() for parameter in host.parameters() if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in host.parameters())
    whole += sum(value.numel() for each in states_of(host) for value in each.factors.buffers())
    return f"trainable params: {trained:,} || all params: {whole:,} || trainable%: {100 * trained / whole:.4f}"


def table(state: "AdapterState") -> str:
    """Return a table of the adapted sites, one line per site."""
    rows = [("path", "layer", "kind", "weight", "module")]
    for site in state.adapter.sites:
        module = type(state.weights[site.weight].module).__name__
        weight = " x ".join(map(str, site.shape))
        rows.append((site.path, str(site.coordinates["layer"]), str(site.coordinates["kind"]), weight, module))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *([state.adapter.sharing] if state.adapter.sharing else [])])
