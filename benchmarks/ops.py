"""Compare one site, forward and backward, with hand-written torch, opt_einsum and torch.einsum, for each family."""

from collections.abc import Callable, Mapping
from typing import Any

import opt_einsum
import torch
from timing import arguments, medians, report
from torch import Tensor, nn
from torch.nn.functional import linear

import tnadapt
import tnadapt_torch
from tnadapt import families
from tnadapt.binding import Network

WIDTH = 1024
TOKENS = (1, 64, 2048)
TERA_RANKS = {f"r_{side}{n}": rank for side in "oi" for n, rank in enumerate((8, 4, 4), 1)}
CASES: dict[str, dict[str, Any]] = {
    "lora": {"rank": 8},
    "lotr": {"rank": 8},
    "lorta": {"rank": 8, "sizes": {"head": 16}},
    "tlora": {"rank": 32},
    "vera": {"rank": 256},
    "tera": {"rank": TERA_RANKS},
}
Params = Mapping[str, Tensor]


def lora(p: Params, x: Tensor, y: Tensor, scale: float) -> Tensor:
    """LoRA as in PEFT."""
    return y + linear(linear(x, p["A"]), p["B"]) * scale


def lotr(p: Params, x: Tensor, y: Tensor, scale: float) -> Tensor:
    """LoTR as in the code of its authors, with the core of one site."""
    return y + scale * (((x @ p["B"]) @ p["G"].T) @ p["A"].T)


def lorta(p: Params, x: Tensor, y: Tensor, scale: float) -> Tensor:
    """LoRTA by its factors; the heads need a small Khatri-Rao product."""
    out = (p["H"][:, None, :] * p["B"][None, :, :]).reshape(-1, p["B"].shape[1])
    return y + scale * (((x @ p["A"]) * (p["L"] * p["M"])) @ out.T)


def tlora(p: Params, x: Tensor, y: Tensor, scale: float) -> Tensor:
    """TLoRA as in the code of its author."""
    return y + p["a"] * (((x @ p["A"]) @ p["B"]) @ p["C"]) * scale


def vera(p: Params, x: Tensor, y: Tensor, scale: float) -> Tensor:
    """VeRA as in PEFT."""
    return y + p["b"] * linear(p["d"] * linear(x, p["A"]), p["B"]) * scale


def tera(p: Params, x: Tensor, y: Tensor, scale: float) -> Tensor:
    """TeRA mode by mode: in maps, diagonals, the core as one matrix, diagonals, out maps."""
    z = x.reshape(-1, *(p[f"U_i{n}"].shape[0] for n in (1, 2, 3)))
    for n in (1, 2, 3):
        z = torch.tensordot(z, p[f"U_i{n}"] * p[f"d_i{n}"], dims=([1], [0]))
    core = p["G"].reshape(-1, z[0].numel())
    z = (z.reshape(z.shape[0], -1) @ core.T).reshape(-1, *p["G"].shape[:3])
    for n in (1, 2, 3):
        z = torch.tensordot(z, p[f"U_o{n}"] * p[f"d_o{n}"], dims=([1], [1]))
    return y + scale * z.reshape(y.shape)


HANDS: dict[str, Callable[[Params, Tensor, Tensor, float], Tensor]] = {
    "lora": lora,
    "lotr": lotr,
    "lorta": lorta,
    "tlora": tlora,
    "vera": vera,
    "tera": tera,
}


def einsum_of(network: Network, tokens: int) -> str:
    """Return the whole update as one einsum equation, with operands x and then the factors."""
    return tnadapt.plan(network, "apply", tokens=tokens).equation()


def contestants(family: str, tokens: int, dtype: torch.dtype, device: str) -> dict[str, Callable[[], None]]:
    """Make forward and backward passes of one site in four ways, on equal factors."""
    torch.manual_seed(0)
    host = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(WIDTH, WIDTH, bias=False)}) for _ in range(2)]).to(
        device, dtype
    )
    state = tnadapt_torch.attach(
        host, getattr(families, family)(), target_modules=["q"], alpha=1.0, seed=0, **CASES[family]
    ).to(device)
    with torch.no_grad():
        for parameter in state.parameters():
            parameter.normal_(std=0.1)
    site, module = state.adapter.sites[0], host[0]["q"]
    update = state.updates[site.path]
    factors = [ref.read().detach().to(dtype) for ref in update.refs]
    trained = [factor.trainable for factor in update.network.factors.values()]
    leaves = [f.clone().requires_grad_(needs) for f, needs in zip(factors, trained, strict=True)]
    params = dict(zip(update.network.factors, leaves, strict=True))
    x = torch.randn(tokens, WIDTH, device=device, dtype=dtype, requires_grad=True)
    y, gradient = (torch.randn(tokens, WIDTH, device=device, dtype=dtype) for _ in range(2))
    y.requires_grad_()  # as the output of a layer does whose input does
    equation, scale = einsum_of(update.network, tokens), update.network.scale
    shapes = [(tokens, *(update.network.sizes[mode] for mode in update.network.in_modes))]
    expression = opt_einsum.contract_expression(equation, *shapes, *(leaf.shape for leaf in leaves))

    def step(forward: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            forward().backward(gradient)
            x.grad = y.grad = None
            for leaf in (*leaves, *state.parameters()):
                leaf.grad = None

        return run

    split = x.detach().reshape(shapes[0]).requires_grad_()
    return {
        "generic": step(lambda: update(module, (x,), {}, y)),
        "hand": step(lambda: HANDS[family](params, x, y, scale)),
        "opt_einsum": step(lambda: y + scale * expression(split, *leaves).reshape(y.shape)),
        "torch.einsum": step(lambda: y + scale * torch.einsum(equation, split, *leaves).reshape(y.shape)),
    }


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "")
    rows = []
    for family in CASES:
        for tokens in TOKENS:
            runs = contestants(family, tokens, getattr(torch, options.dtype), options.device)
            times = medians(runs, options.rounds)
            ratios = {f"/ {name}": times["generic"] / times[name] for name in list(times)[1:]}
            rows.append({"family": family, "tokens": tokens, "generic us": times["generic"] * 1e6} | ratios)
    report(options, rows)


if __name__ == "__main__":
    main()
