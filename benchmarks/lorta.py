"""Compare LoRTA by its factors with a plain version that builds every delta of every layer at each forward pass."""

import torch
from timing import arguments, medians, report
from torch import Tensor, nn
from torch.nn.functional import linear

import tnadapt_torch
from tnadapt import families

WIDTH, HEADS, LAYERS, TOKENS, RANK = 768, 12, 12, 64, 8
KINDS = ("q", "k", "v", "o")


class Host(nn.Module):
    """Layers of four projections, applied in sequence."""

    def __init__(self) -> None:
        """Make frozen random weights."""
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({kind: nn.Linear(WIDTH, WIDTH, bias=False) for kind in KINDS}) for _ in range(LAYERS)
        )
        self.requires_grad_(False)

    def forward(self, x: Tensor, deltas: Tensor | None = None) -> Tensor:
        """Run x (token, width). If given, deltas (layer, kind, out, in) are applied as separate linear layers."""
        for number, layer in enumerate(self.layers):
            for place, kind in enumerate(KINDS):
                y = layer[kind](x)
                x = torch.tanh(y if deltas is None else y + linear(x, deltas[number, place]))
        return x


def all_deltas(a: Tensor, b: Tensor, heads: Tensor, layers: Tensor, kinds: Tensor) -> Tensor:
    """Build the whole CP tensor (layer, kind, out, in) from the formula."""
    weights = layers[:, None, :] * kinds[None, :, :]
    out = (heads[:, None, :] * b[None, :, :]).reshape(WIDTH, -1)
    return torch.einsum("lmr,or,ir->lmoi", weights, out, a)


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "")
    torch.manual_seed(0)
    plain, ours = Host().to(options.device), Host().to(options.device)
    state = tnadapt_torch.attach(
        ours, families.lorta(), target_modules=list(KINDS), rank=RANK, sizes={"head": HEADS}, seed=0
    ).to(options.device)
    shapes = ((WIDTH, RANK), (WIDTH // HEADS, RANK), (HEADS, RANK), (LAYERS, RANK), (len(KINDS), RANK))
    factors = [torch.randn(shape, device=options.device, requires_grad=True) for shape in shapes]
    x = torch.randn(TOKENS, WIDTH, device=options.device)

    def run_ours() -> None:
        ours(x).square().mean().backward()
        state.zero_grad()

    def run_plain() -> None:
        plain(x, all_deltas(*factors)).square().mean().backward()
        for factor in factors:
            factor.grad = None

    times = medians({"factors": run_ours, "every delta": run_plain}, options.rounds)
    ms = {f"{name} ms": 1e3 * seconds for name, seconds in times.items()}
    report(options, [ms | {"ratio": times["factors"] / times["every delta"]}])


if __name__ == "__main__":
    main()
