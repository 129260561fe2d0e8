"""Compress a LoRA of rank 16 on query and value, with the shapes of two hosts, into the closest adapter of other specs.

There are two kinds of updates: those of a random LoTR of rank 16, which have an exact compact form, and random LoRAs,
which have nothing in common. Each row runs in its own process, so that peak memory is measured per row. `dense GB` is
the size of the stack of dense updates.
"""

import resource
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
from timing import arguments, report

from tnadapt import AdapterSpec, Site, compress, count, families, find_host
from tnadapt.binding import LoRA

RANK, SWEEPS = 16, 10
HOSTS = ("roberta-base", "llama-2-7b")
SPECS: Mapping[str, tuple[AdapterSpec, int]] = {
    "lotr": (families.lotr(), 16),
    "lotr_tt": (families.lotr_tt(), 16),
    "lorta": (families.lorta(), 32),
    "metatt": (families.metatt(), 16),
    "tenslora": (families.tenslora(), 16),
    "lora": (families.lora(), 8),
}


def updates_of(sites: tuple[Site, ...], kind: str) -> dict[Site, LoRA]:
    """Make one LoRA per site: all with the same outer factors and different cores ("exact"), or independent ones."""
    random = np.random.default_rng(0)
    out, inner = sites[0].shape
    left, right = random.standard_normal((out, RANK)), random.standard_normal((RANK, inner))
    found = {}
    for site in sites:
        if kind == "exact":
            found[site] = LoRA(right, left @ random.standard_normal((RANK, RANK)), 1.0)
        else:
            found[site] = LoRA(random.standard_normal((RANK, inner)), random.standard_normal((out, RANK)), 1.0)
    return found


def row(host_name: str, kind: str, name: str) -> dict[str, Any]:
    """Compress once; return the error, the size, the time and the peak memory."""
    host = find_host(host_name)
    sites = host.sites()
    spec, rank = SPECS[name]
    given = updates_of(sites, kind)
    start = time.perf_counter()
    sizes = {"head": host.heads} if any("head" in axis for axis in spec.axes) else None
    found = compress(given, spec, rank=rank, sizes=sizes, sweeps=SWEEPS)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1) / 1e9
    before = sum(sum(site.shape) * RANK for site in sites)
    return {
        "host": host_name,
        "updates": kind,
        "to": f"{name} {rank}",
        "error": f"{found.error:.1e}" if found.error < 1e-3 else f"{found.error:.4f}",
        "numbers": f"{count(found.adapter).trainable / before:.1%}",
        "sweeps": max(len(errors) - 1 for errors in found.history.values()),
        "seconds": seconds,
        "peak GB": peak,
        "dense GB": sum(8 * site.shape[0] * site.shape[1] for site in sites) / 1e9,
    }


def main() -> None:
    """Print one row per host, kind of updates and spec."""
    options = arguments(__doc__ or "")
    options.rounds = 1  # each run takes long enough
    asked = [(host, kind, name) for host in HOSTS for kind in ("exact", "random") for name in SPECS]
    rows = []
    for words in asked:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            rows.append(alone.submit(row, *words).result())
    report(options, rows)


if __name__ == "__main__":
    main()
