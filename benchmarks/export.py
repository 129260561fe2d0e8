"""Export every family as LoRAs with the shapes of LLaMA-2-7B, one weight after another; compare with one dense SVD.

Values are random, in float32. A family that has full rank on some weight has no exact LoRA and is listed without time.
"""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from timing import arguments, report

from tnadapt import Adapter, AdapterSpec, Site, SiteError, families, find_host, to_lora
from tnadapt.binding import minimum_cut

RANK = 16
SIZES = {"lorta": {"head": 32}, "cara": {"head": 32}, "kadaptation": {"o1": 32, "i1": 32}}
RANKS = {"randlora": {"r": 16, "n": 4}, "lokr": 4, "loha": {"p": 8, "q": 8}}


def bind(name: str, sites: Sequence[Site]) -> Adapter:
    """Bind a family to all linear layers. Site modes other than layer and kind get size 1."""
    spec: AdapterSpec = getattr(families, name)()
    further = dict.fromkeys({*spec.site_modes} - {"layer", "kind", "site"}, 0)
    places = [Site(site.path, site.shape, dict(site.coordinates) | further) for site in sites]
    rank = RANKS.get(name, RANK) if spec.free_bonds else None
    return spec.bind(places, rank=rank, sizes=SIZES.get(name), seed=0)


def is_full(adapter: Adapter) -> bool:
    """Return whether any network has no exact LoRA that is smaller than the weight."""
    return any(minimum_cut(network).rank >= min(network.weight_shape) for network in adapter.networks)


def draw(adapter: Adapter) -> Mapping[str, np.ndarray]:
    """Draw random values for every factor, including frozen ones."""
    random = np.random.default_rng(0)
    return {name: random.standard_normal(slot.shape, np.float32) for name, slot in adapter.slots.items()}


def export(adapter: Adapter) -> dict[str, Any]:
    """Export all weights, discarding each result; return the time and the highest rank."""
    params = draw(adapter)
    start, rank = time.perf_counter(), 0
    for site in adapter.sites:
        rank = max(rank, to_lora(adapter, params, site).rank)
    return {"sites": len(adapter.sites), "rank": rank, "seconds": time.perf_counter() - start}


def peak() -> float:
    """Return the peak memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1) / 1e9


def main() -> None:
    """Print one row per family, their sum, and the SVD."""
    options = arguments(__doc__ or "")
    options.rounds = 1  # each run takes long enough
    sites = find_host("llama-2-7b").sites("all-linear")
    rows: list[dict[str, Any]] = []
    for name in families.__all__:
        try:
            adapter = bind(name, sites)
        except SiteError as error:  # ranks that the family cannot have
            print(f"{name}: {str(error).partition(chr(10))[0]}", file=sys.stderr)
            continue
        found = {} if is_full(adapter) else export(adapter)
        rows.append({"family": name, "sites": "-", "rank": "full", "seconds": "-"} | found | {"peak GB so far": peak()})
    whole = sum(row["seconds"] for row in rows if isinstance(row["seconds"], float))
    rows.append({"family": "all", "sites": "-", "rank": "-", "seconds": whole, "peak GB so far": peak()})
    start = time.perf_counter()
    np.linalg.svd(np.random.default_rng(0).standard_normal((4096, 4096), np.float32))
    svd = time.perf_counter() - start
    rows.append({"family": "one dense SVD", "sites": 1, "rank": 4096, "seconds": svd, "peak GB so far": peak()})
    report(options, rows)


if __name__ == "__main__":
    main()
