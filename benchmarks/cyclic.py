"""Time C3A by FFT, and with its cyclic factor contracted like any other: one site, forward and backward."""

import torch
from timing import arguments, medians, report

from tnadapt import families, grid, init, plan
from tnadapt.binding import Network
from tnadapt_torch._run.lower import lower_apply, nodes_read

CASES = [  # width, block
    (1024, 16),
    (1024, 128),
    (1024, 256),
    (2048, 128),
    (2048, 256),
    (4096, 128),
    (4096, 256),
]
TOKENS = (1, 16, 1024)


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "")
    where = {"dtype": getattr(torch, options.dtype), "device": options.device}
    rows = []
    for width, block in CASES:
        adapter = families.c3a().bind(grid(layers=1, kinds={"q": (width, width)}), sizes={"o2": block, "i2": block})
        network, params = adapter.networks[0], init(adapter)
        factors = {name: torch.tensor(params[name]).to(**where).requires_grad_(name == "c") for name in network.nodes}
        for tokens in TOKENS:
            x = torch.randn(tokens, width, **where).requires_grad_()
            y = torch.randn(tokens, width, **where)
            fft, dense = (_step(network, factors, x, y, fft=fft) for fft in (True, False))
            times = medians({"fft": fft, "dense": dense}, options.rounds)
            rows.append(
                {
                    "width": width,
                    "block": block,
                    "tokens": tokens,
                    "by FFT": bool(plan(network, tokens=tokens).convolutions),
                    "ms": 1e3 * times["fft"],
                    "contracted ms": 1e3 * times["dense"],
                    "ratio": times["dense"] / times["fft"],
                }
            )
    report(options, rows)


def _step(network: Network, factors: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, *, fft: bool):
    """Return a function that runs both passes of one site."""
    tokens = len(x)
    code = lower_apply(network, tokens, fft=fft)
    read = [list(factors.values())[number] for number in nodes_read(network, tokens, fft=fft)]

    def run() -> None:
        torch.autograd.grad(code(y, x, *read), (x, factors["c"]), y)

    return run


if __name__ == "__main__":
    main()
