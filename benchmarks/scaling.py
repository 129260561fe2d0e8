"""Measure the cost per site as sites and tokens grow, and the time for binding and planning with empty caches."""

import time
from typing import Any

import torch
from timing import arguments, medians, report
from torch import nn

import tnadapt
import tnadapt_torch
from tnadapt import families
from tnadapt.binding import BUCKETS

WIDTH = 256
SITES = (12, 560)
TOKENS = (1, 64, 1024, 8192)
HEADS = {"lorta": {"head": 1}}  # family -> the sizes that it needs
RANKS = {"lotr": 32, "lorta": 8, "tlora": 8, "tera": 4, "vera": 8, "lora": 8}
LLAMA_70B = {"q": (8192, 8192), "k": (1024, 8192), "v": (1024, 8192), "o": (8192, 8192)} | {
    "gate": (28672, 8192),
    "up": (28672, 8192),
    "down": (8192, 28672),
}


def cold_seconds(family: str) -> float:
    """Measure binding an adapter to the 560 weights of a 70B shape and planning each network for all buckets."""
    sites = tnadapt.grid(layers=80, kinds=LLAMA_70B)
    start = time.perf_counter()
    adapter = getattr(families, family)().bind(sites, rank=8, sizes=HEADS.get(family))
    for network in dict.fromkeys(adapter.networks):
        for tokens in BUCKETS:
            tnadapt.plan(network, tokens=tokens)
    return time.perf_counter() - start


def step_seconds(family: str, sites: int, tokens: int, options: Any) -> dict[str, float]:
    """Measure microseconds per site, forward and backward: with adapter, frozen host, and the difference."""
    torch.manual_seed(0)
    hosts = [nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(sites)) for _ in range(2)]
    adapted, plain = (host.to(options.device).requires_grad_(False) for host in hosts)
    spec, rank, sizes = getattr(families, family)(), RANKS[family], HEADS.get(family)
    state = tnadapt_torch.attach(adapted, spec, target_modules="all-linear", rank=rank, sizes=sizes, seed=0)
    state.to(options.device)
    x = torch.randn(tokens, WIDTH, device=options.device)
    modules = [module for module in adapted if isinstance(module, nn.Linear)]

    def run() -> None:
        torch.stack([module(x).sum() for module in modules]).sum().backward()
        state.zero_grad()

    def run_plain() -> None:
        torch.stack([module(x).sum() for module in plain]).sum()

    times = medians({"with adapter": run, "frozen host": run_plain}, options.rounds)
    found = {f"{name} us": 1e6 * seconds / sites for name, seconds in times.items()}
    return found | {"adapter us": found["with adapter us"] - found["frozen host us"]}


def main() -> None:
    """Print both tables."""
    options = arguments(__doc__ or "")
    rows: list[dict[str, Any]] = []
    for family in RANKS:
        first = step_seconds(family, SITES[0], 16, options)
        for sites in SITES:
            times = first if sites == SITES[0] else step_seconds(family, sites, 16, options)
            ratio = times["adapter us"] / first["adapter us"]
            rows.append({"family": family, "sites": sites, "tokens": 16} | times | {"/ 12 sites": ratio})
        for tokens in TOKENS:
            times = step_seconds(family, SITES[0], tokens, options)
            rows.append({"family": family, "sites": SITES[0], "tokens": tokens} | times | {"/ 12 sites": "-"})
    report(options, rows)
    report(options, [{"family": family, "bind and plan s": cold_seconds(family)} for family in RANKS])


if __name__ == "__main__":
    main()
