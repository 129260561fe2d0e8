"""What a site costs as sites and tokens grow, and how long binding and planning take, cold."""

import time
from typing import Any

import torch
from timing import arguments, medians, report
from torch import nn

import tnadapt
import tnadapt_torch
from tnadapt import families

WIDTH = 256
SITES = (12, 140, 560)
TOKENS = (1, 64, 1024, 8192)
RANKS = {"lotr": 32, "lorta": 8, "tlora": 8, "tera": 4, "vera": 8, "lora": 8}
LLAMA_70B = {"q": (8192, 8192), "k": (1024, 8192), "v": (1024, 8192), "o": (8192, 8192)} | {
    "gate": (28672, 8192),
    "up": (28672, 8192),
    "down": (8192, 28672),
}


def cold_seconds(family: str) -> float:
    """Bind an adapter to the 560 weights of a 70B shape and plan each of its networks for all buckets."""
    sites = tnadapt.grid(layers=80, kinds=LLAMA_70B)
    start = time.perf_counter()
    adapter = getattr(families, family)().bind(sites, rank=8)
    for network in dict.fromkeys(adapter.networks):
        for tokens in tnadapt.BUCKETS:
            tnadapt.plan(network, tokens=tokens)
    return time.perf_counter() - start


def step_seconds(family: str, sites: int, tokens: int, options: Any) -> float:
    """Median seconds of forward and backward through all sites of an adapter, over the number of sites."""
    torch.manual_seed(0)
    host = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(sites)).to(options.device)
    state = tnadapt_torch.attach(
        host, getattr(families, family)(), target_modules="all-linear", rank=RANKS[family], seed=0
    )
    state.to(options.device)
    x = torch.randn(tokens, WIDTH, device=options.device)
    modules = [module for module in host if isinstance(module, nn.Linear)]

    def run() -> None:
        torch.stack([module(x).sum() for module in modules]).sum().backward()
        state.zero_grad()

    return medians({"run": run}, options.rounds)["run"] / sites


def main() -> None:
    """Print both tables."""
    options = arguments(__doc__ or "")
    rows: list[dict[str, Any]] = []
    for family in RANKS:
        for sites in SITES:
            rows.append({"family": family, "sites": sites, "tokens": 16})
            rows[-1]["us a site"] = 1e6 * step_seconds(family, sites, 16, options)
            first = next(row for row in rows if row["family"] == family)
            rows[-1]["/ 12 sites"] = rows[-1]["us a site"] / first["us a site"]
    for family in RANKS:
        for tokens in TOKENS:
            rows.append({"family": family, "sites": 12, "tokens": tokens})
            rows[-1] |= {"us a site": 1e6 * step_seconds(family, 12, tokens, options), "/ 12 sites": "-"}
    report(options, rows)
    report(options, [{"family": family, "bind and plan s": cold_seconds(family)} for family in RANKS])


if __name__ == "__main__":
    main()
