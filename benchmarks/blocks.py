"""Compare training steps in a block of `fixed()` with the same steps outside of it: launches, and time.

    python benchmarks/blocks.py                                   all methods
    python benchmarks/blocks.py --methods LoTR --layers 2

A Llama-shaped model with adapters on its seven projections, eager; a step is forward and backward, without an
optimizer. Launches are what the adapter adds, by layer; what is made for all sites at once is counted in them. The
ratios divide the time of a step in a block by that of one outside of it, of the same model and in turn. "kept" is the
number of elements of the products of factors that the sites share, by that of the adapter's parameters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from counting import count
from llama import METHODS, Method, Shape, adapted, host_of, methods, step_of
from timing import medians, parsed, parser_of, report

HIDDEN, INNER, HEADS, KEY_HEADS = 512, 1408, 8, 2
TOKENS = 131  # a prime that divides no other size
CASES = ("LoRA", "LoTR", "LoRTA", "VeRA", "MetaTT", "FacT-TT", "FacT-TK", "TT-LoRA", "TeRA")
FURTHER = {"FacT-TK": Method("fact_tk", {"rank": 32})}


def in_block(state: Any, step: Callable[[], None]) -> None:
    """Run a step in a block of its own."""
    with state.fixed():
        step()


def elements_of(state: Any) -> int:
    """Return the number of elements of the products that are kept now."""
    return sum(row.numel() for kept in (state.joint or {}).values() for rows in kept.rows for row in rows)


def kept_in(state: Any, forward: Callable[[], Any]) -> int:
    """Return the number of elements of the products that a forward pass keeps."""
    with state.fixed():
        forward()
        return elements_of(state)


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__ or "")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *FURTHER], default=CASES)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    options = parsed(parser)
    shape = Shape(HIDDEN, INNER, HEADS, KEY_HEADS, options.layers)
    host = host_of(shape, options.device, getattr(torch, options.dtype))
    x, cotangent = (torch.randn(1, options.tokens, HIDDEN).to(next(host.parameters())) for _ in range(2))
    x.requires_grad_()
    counted = partial(count, tokens=options.tokens, width=HIDDEN * KEY_HEADS // HEADS)
    base = counted(step_of(host, host, x, cotangent))
    rows = []
    for name in options.methods:
        model, state = adapted(host, (methods(shape) | FURTHER)[name])
        outside = step_of(model, state, x, cotangent)
        inside = partial(in_block, state, outside)
        before, after = ((counted(step) - base).launches / options.layers for step in (outside, inside))
        times = medians({"outside": outside, "inside": inside}, options.rounds)
        trained = sum(one.numel() for one in state.parameters())
        rows.append(
            {
                "method": name,
                "launches a layer": before,
                "in a block": after,
                "in a block / outside": after / before,
                "outside ms": 1e3 * times["outside"],
                "time in a block / outside": times["inside"] / times["outside"],
                "kept / parameters": kept_in(state, partial(model, inputs_embeds=x)) / trained,
            }
        )
    report(options, rows, f"{options.layers} x {HIDDEN} wide, {options.tokens:,} tokens")


if __name__ == "__main__":
    main()
