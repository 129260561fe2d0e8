"""Measure what the planner assumes of a device, and print it in the planner's units beside what it has now.

    python benchmarks/calibrate.py --threads 1
    python benchmarks/calibrate.py --device cuda --dtype bfloat16 --record

Nothing is changed: MOVED and CALL are in tnadapt/_planning/cost.py, those of Machine in
tnadapt_torch/_run/ways.py.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from limits import Speeds
from timing import medians, parsed, parser_of, report

from tnadapt._planning import cost
from tnadapt_torch._run.ways import MACHINES

REPEATS = 100  # launches in one measurement
RATIO = 1.25  # a gradient is slow if it takes so many times that of the same in the other layout


@dataclass(frozen=True)
class Sizes:
    """Tokens and width of the products, the ranks of the skinny ones, and the numbers of a large array."""

    tokens: int
    width: int
    ranks: tuple[int, ...]
    large: int


CPU = Sizes(1024, 1024, (4, 8, 16, 32, 64, 128, 256, 512), 2**25)
CUDA = Sizes(4096, 4096, (8, 16, 32, 64, 128, 256, 512, 1024), 2**28)
QUICK = Sizes(64, 64, (4, 16), 2**12)


@dataclass(frozen=True)
class Measured:
    """Seconds of a product, a copy and so on: what the constants follow from.

    `last` and `first` are the gradients of a matrix of `width` x rank, with the rank innermost and outermost.
    """

    sizes: Sizes
    wide: float
    skinny: float
    copy: float
    large: float
    launch: float
    transform: float
    last: dict[int, float]
    first: dict[int, float]

    @property
    def flops(self) -> float:
        """The flops of a wide product in a second."""
        return 2 * self.sizes.tokens * self.sizes.width**2 / self.wide

    @property
    def copied(self) -> float:
        """The numbers of an array of tokens x width that are copied in a second; each is moved twice."""
        return self.sizes.tokens * self.sizes.width / self.copy


def measure(sizes: Sizes, device: str, dtype: torch.dtype, rounds: int, wanted: int | None = None) -> Measured:
    """Measure a device. `wanted` leaves out all ranks but one."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    tokens, width, ranks = sizes.tokens, sizes.width, sizes.ranks if wanted is None else (wanted,)
    x, weight, y = random(tokens, width), random(width, width), random(tokens, width)
    one, other = random(16), random(16)
    large, target = random(sizes.large), random(sizes.large)
    wave = torch.randn(16, 64, device=device)
    skinny = random(width, 16)

    def repeat(run: Callable[[], Any]) -> Callable[[], None]:
        return lambda: [run() for _ in range(REPEATS)] and None

    runs: dict[Any, Callable[[], Any]] = {
        "wide": lambda: torch.mm(x, weight, out=y),
        "skinny": lambda: torch.mm(x, skinny),
        "copy": lambda: y.copy_(x),
        "large": lambda: target.copy_(large),
        "launch": repeat(lambda: torch.add(one, other, out=one)),
        "transform": repeat(lambda: torch.fft.rfft(wave)),
    }
    for rank in ranks:
        z = random(tokens, rank)
        runs["last", rank] = lambda z=z: x.T @ z
        runs["first", rank] = lambda z=z: z.T @ x
    times = medians(runs, rounds)
    return Measured(
        sizes,
        **{name: times[name] for name in ("wide", "skinny", "copy", "large")},
        launch=times["launch"] / REPEATS,
        transform=times["transform"] / REPEATS,
        last={rank: times["last", rank] for rank in ranks},
        first={rank: times["first", rank] for rank in ranks},
    )


def speeds_of(options: argparse.Namespace, sizes: Sizes | None = None) -> Speeds:
    """Measure the speeds that limits are computed with."""
    dtype, cuda = getattr(torch, options.dtype), options.device.startswith("cuda")
    found = measure(sizes or (CUDA if cuda else CPU), options.device, dtype, 5, wanted=16)
    return Speeds(found.flops, 2 * found.copied * dtype.itemsize, found.launch, overlaps=cuda)


def slow_of(found: Measured, rank: int) -> float | None:
    """Return the multiplications that take as long as copying one number, beside the good layout; None if none do."""
    extra = found.last[rank] - found.first[rank]
    products = found.sizes.tokens * found.sizes.width * rank
    return products / (extra * found.copied) if extra > 0 and is_slow(found, rank) else None


def is_slow(found: Measured, rank: int) -> bool:
    """Return whether a gradient takes clearly longer with its short side innermost."""
    return found.last[rank] > RATIO * found.first[rank]


def skinny_of(found: Measured) -> float | None:
    """Return the least ratio of sides from which every gradient measured is slow; None if the most skinny is not."""
    slow = None
    for rank in sorted(found.last):
        if not is_slow(found, rank):
            break
        slow = found.sizes.width / rank
    return slow


def constants(found: Measured) -> list[dict[str, Any]]:
    """Return the rows of the planner's constants: what was measured, what it has, and the unit."""
    slow = [one for rank in found.last if (one := slow_of(found, rank)) is not None]
    skinny = skinny_of(found)
    moved = found.flops / (2 * found.copied)
    return [
        {"constant": "MOVED", "measured": moved, "now": cost.MOVED, "in": "flops for a number moved"},
        {
            "constant": "CALL",
            "measured": found.transform * 2 * found.copied,
            "now": float(cost.CALL),
            "in": "numbers moved for a transform",
        },
        {
            "constant": "call",
            "measured": found.launch * found.copied,
            "now": float(MACHINES["cpu"].call),
            "in": "numbers copied for a launch",
        },
        {
            "constant": "slow",
            "measured": sorted(slow)[len(slow) // 2] if slow else "not slow",
            "now": float(MACHINES["cpu"].slow),
            "in": "multiplications for a number copied",
        },
        {
            "constant": "skinny",
            "measured": "not slow" if skinny is None else skinny,
            "now": float(MACHINES["cpu"].skinny),
            "in": "ratio of sides",
        },
    ]


def speeds(found: Measured) -> list[dict[str, Any]]:
    """Return the rows of what was measured."""
    tokens, width = found.sizes.tokens, found.sizes.width
    skinny = 2 * tokens * width * 16 / found.skinny
    return [
        {"what": f"product, {tokens} x {width} x {width}", "value": found.flops / 1e9, "in": "GFLOP/s"},
        {"what": f"product, {tokens} x {width} x 16", "value": skinny / 1e9, "in": "GFLOP/s"},
        {"what": f"copy, {tokens} x {width}", "value": 2 * found.copied / 1e9, "in": "G numbers/s read and written"},
        {
            "what": f"copy, {found.sizes.large:,} numbers",
            "value": 2 * found.sizes.large / found.large / 1e9,
            "in": "G numbers/s read and written",
        },
        {"what": "launch of a sum of 16 numbers", "value": 1e6 * found.launch, "in": "us"},
        {"what": "real transform of 16 x 64 numbers", "value": 1e6 * found.transform, "in": "us"},
    ]


def main() -> None:
    """Print what was measured, the constants, and the gradients of matrices by their rank."""
    parser = parser_of(__doc__ or "")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, which say nothing of the device")
    options = parsed(parser)
    sizes = QUICK if options.quick else CUDA if options.device.startswith("cuda") else CPU
    found = measure(sizes, options.device, getattr(torch, options.dtype), options.rounds)
    report(options, speeds(found), "Speeds")
    report(options, constants(found), "Constants of the planner")
    rows = [
        {
            "rank": rank,
            "innermost us": 1e6 * found.last[rank],
            "outermost us": 1e6 * found.first[rank],
            "/ outermost": found.last[rank] / found.first[rank],
        }
        for rank in found.last
    ]
    report(options, rows, f"Gradients of a matrix of {sizes.width} x rank, by the place of the rank")


if __name__ == "__main__":
    main()
