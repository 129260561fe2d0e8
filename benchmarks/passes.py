"""Count launches and bytes of tokens x width of one layer, forward and backward. Nothing is timed.

    python benchmarks/passes.py                                   all methods
    python benchmarks/passes.py --methods LoRA --record --label baseline

One layer of a Llama shape with adapters on its seven projections, eager. "added" is what the adapter takes beside the
frozen layer; "the least" is the limit of limits.py. A pass is the bytes of one array of tokens x hidden size. If there
is a record with the label "baseline", "/ before" are ratios to what it has.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import recording
import torch
from counting import Counts, count
from limits import limit_of
from llama import METHODS, Shape, adapted, by_hand, by_peft, host_of, methods
from timing import parsed, parser_of, report
from torch import Tensor, nn

SHAPE = Shape(hidden=1024, inner=2816, heads=16, key_heads=4, layers=1)
TOKENS = 509  # a prime that divides no other size
BASELINE = "baseline"


def layer_step(model: Any, trained: nn.Module, x: Tensor, cotangent: Tensor) -> Callable[[], None]:
    """Return both passes of the first layer of a Llama, with the gradients of x and of what is trained."""
    host = model.get_base_model() if hasattr(model, "get_base_model") else model
    leaves = [x, *(one for one in trained.parameters() if one.requires_grad)]
    rotary = host.rotary_emb(x.detach(), torch.arange(x.shape[1], device=x.device)[None])

    def step() -> None:
        y = host.layers[0](x, position_embeddings=rotary)
        torch.autograd.grad(y if isinstance(y, Tensor) else y[0], leaves, cotangent)

    return step


def counts_of(host: nn.Module, names: Sequence[str], shape: Shape, tokens: int) -> dict[str, dict[str, Any]]:
    """Return, for each method, what a layer takes with tnadapt, by hand and with PEFT, and the limit; and the base."""
    weight = next(host.parameters())
    x, cotangent = (torch.randn(1, tokens, shape.hidden).to(weight) for _ in range(2))
    x.requires_grad_()
    width = min(shape.hidden, shape.hidden * shape.key_heads // shape.heads)

    def counted(model: Any, trained: nn.Module) -> Counts:
        return count(layer_step(model, trained, x, cotangent), tokens=tokens, width=width)

    base = counted(host, host)
    found: dict[str, dict[str, Any]] = {"frozen base": {"tnadapt": base}}
    for name in names:
        method = methods(shape)[name]
        model, state = adapted(host, method)
        hand, theirs = by_hand(host, method, state), by_peft(host, method)
        found[name] = {
            "tnadapt": counted(model, state) - base,
            "by hand": counted(hand, hand) - base,
            "PEFT": None if theirs is None else counted(theirs, theirs) - base,
            "limit": limit_of(state.adapter, tokens=tokens, training=True, size=weight.element_size()),
        }
    return found


def table(found: dict[str, dict[str, Any]], key: str, unit: int, before: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of launches or of bytes, in a unit, with the ratios to those of a baseline."""

    def of(counts: Any) -> Any:
        return "-" if counts is None else getattr(counts, key) if unit == 1 else getattr(counts, key) / unit

    base, rows = of(found["frozen base"]["tnadapt"]), []
    for name, row in found.items():
        own, old = of(row["tnadapt"]), before.get(name)
        whole = own if name == "frozen base" else own + base
        cells = {"method": name, "added": own}
        cells |= {one: of(row.get(one)) for one in ("by hand", "PEFT")} | {"the least": of(row.get("limit"))}
        cells |= {"/ before": own / old["added"] if old else "-"} if before else {}
        cells |= {"with the base": whole}
        cells |= {"with the base / before": whole / old["with the base"] if old else "-"} if before else {}
        rows.append(cells)
    return rows


def baseline(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of the tables before a change by method, from the record of the baseline; empty without one."""
    path = recording.FOLDER / f"passes-{options.device.partition(':')[0]}-{BASELINE}.json"
    if options.label == BASELINE or not path.exists():
        return [{}, {}]
    return [{row["method"]: row for row in one.rows} for one in recording.read(path).tables[:2]]


def main() -> None:
    """Print the tables: launches, passes, and the operators of LoRA."""
    parser = parser_of(__doc__ or "")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    options = parsed(parser)
    options.rounds = 1  # to count again gives the same
    host = host_of(SHAPE, options.device, getattr(torch, options.dtype))
    found = counts_of(host, options.methods, SHAPE, TOKENS)
    before = baseline(options)
    one = TOKENS * SHAPE.hidden * next(host.parameters()).element_size()
    report(options, table(found, "launches", 1, before[0]), "Launches")
    report(options, table(found, "bytes", one, before[1]), "Passes over tokens x hidden size")
    rows = []
    for name, row in found.items():
        operators = sorted(row["tnadapt"].operators.items())
        rows.append({"method": name, "added": ", ".join(f"{number} {operator}" for operator, number in operators)})
    report(options, rows, "Operators")


if __name__ == "__main__":
    main()
