"""How far the first step of Adam moves the weights, by family: at the papers' scales, under `unit`, and measured.

    python step_size.py                all families
    python step_size.py lora lotr      some of them

The first two columns are computed, as multiples of LoRA's of rank 8 with alpha 8 at the same learning rate: the least
and the largest over widths 256 to 8,192, ranks 4 to 64 and 12 to 224 sites. The last two are steps that were taken by
torch.optim.Adam with the gradient of random data, divided by what `step_size` says: the least and the largest over the
sites of square weights of that width, at rank 8.
"""

import argparse
import math
from collections.abc import Iterator

import numpy as np
import torch
from recording import table
from timing import record_options, write_record
from torch import nn

import tnadapt
from tnadapt import LORA_STEP, Adapter, AdapterSpec, Site, SiteError, SpecError, families, grid, step_size, unit
from tnadapt_torch import attach

WIDTHS, RANKS, LAYERS = (256, 1024, 4096, 8192), (4, 8, 16, 64), (6, 112)
RATE, HEAD = 1e-4, 16
KINDS = ("q", "v")


def bound(spec: AdapterSpec, sites: tuple[Site, ...], rank: int, *, is_unit: bool) -> Adapter:
    """Bind a family to sites, with heads of 16 entries where it has heads."""
    sizes = {mode: HEAD for mode, rule in spec.sizes.items() if getattr(rule, "kind", "") == "required"}
    scale = unit(LORA_STEP) if is_unit else None
    return spec.bind(sites, rank=rank if spec.free_bonds else None, sizes=sizes, scale=scale, overparametrized=True)


def computed(spec: AdapterSpec, *, is_unit: bool) -> Iterator[float]:
    """Yield the steps over the widths, ranks and numbers of sites that the family can have."""
    for width in WIDTHS:
        for layers in LAYERS:
            sites = grid(layers=layers, kinds=dict.fromkeys(KINDS, (width, width)))
            for rank in RANKS:
                try:
                    adapter = bound(spec, sites, rank, is_unit=is_unit)
                except SiteError:
                    continue  # a rank that the family cannot have at this width
                yield from (size.of_lora for size in step_size(adapter).values())


def measured(spec: AdapterSpec, width: int, layers: int = 2) -> Iterator[float]:
    """Take one step of Adam, and yield the RMS of the change at each site, divided by what `step_size` says."""
    torch.manual_seed(0)
    names = [f"layers.{layer}.{kind}" for layer in range(layers) for kind in KINDS]
    model = nn.Module()
    model.layers = nn.ModuleList(
        nn.ModuleDict({kind: nn.Linear(width, width, bias=False) for kind in KINDS}) for _ in range(layers)
    )
    sizes = {mode: HEAD for mode, rule in spec.sizes.items() if getattr(rule, "kind", "") == "required"}
    state = attach(
        model,
        spec,
        target_modules=list(KINDS),
        rank=8 if spec.free_bonds else None,
        sizes=sizes,
        overparametrized=True,
    )
    weights = {name: model.get_submodule(name).weight.detach().numpy() for name in names}
    begin = tnadapt.init(state.adapter, weights)
    said = step_size(state.adapter, begin)
    optimizer = torch.optim.Adam(state.parameters(), lr=RATE, eps=1e-30)
    for name in names:
        x = torch.randn(2 * width, width)
        (model.get_submodule(name)(x) * torch.randn(2 * width, width)).sum().backward()
    optimizer.step()
    after = {key: np.asarray(value, dtype=np.float64) for key, value in state.arrays().items()}
    for site in state.adapter.sites:
        group, _ = state.adapter.find(site)
        change = tnadapt.delta(state.adapter, begin | after, site) - tnadapt.delta(state.adapter, begin, site)
        yield math.sqrt(float(np.square(change).mean())) / RATE / said[group.name].update


def span(values: list[float]) -> str:
    """Return the least and the largest value."""
    if not values:
        return "-"
    return f"{min(values):.2g} to {max(values):.2g}"


def main() -> None:
    """Print a row for each family."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("families", nargs="*", default=families.__all__)
    record_options(parser)
    options = parser.parse_args()
    rows = []
    print(
        "| family | papers' scale | unit | measured / computed, width 256 | measured / computed, width 1,024 |\n"
        "|---|---|---|---|---|"
    )
    for name in options.families:
        spec = getattr(families, name)()
        columns = []
        for is_unit in (False, True):
            try:
                columns.append(span(list(computed(spec, is_unit=is_unit))))
            except (SiteError, SpecError):
                columns.append("read from the host")
        for width in (256, 1024):
            try:
                columns.append(span(list(measured(spec, width))))
            except SiteError as error:
                columns.append(str(error).partition("\n")[0][:60])
        print(f"| {name} | {' | '.join(columns)} |", flush=True)
        heads = ("papers' scale", "unit", "measured / computed, width 256", "measured / computed, width 1,024")
        rows.append({"family": name} | dict(zip(heads, columns, strict=True)))
    write_record(options, [table(rows)])


if __name__ == "__main__":
    main()
