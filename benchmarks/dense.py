"""Compare full-rank families with a LoRA of equal flops, forward and backward, and count what they copy."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from timing import arguments, medians, report
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tnadapt import families, grid, plan
from tnadapt.binding import Network
from tnadapt_torch._run.lower import lower_apply, nodes_read

WIDTH = 1024
TOKENS = (512, 2048)
FOURS, EIGHTS = (dict.fromkeys(("o1", "i1"), size) for size in (4, 8))
FOUR_AXES = {f"{side}{axis}": size for side in "oi" for axis, size in enumerate((8, 8, 4, 4), 1)}
TERA_RANKS = {f"r_{side}{axis}": rank for side in "oi" for axis, rank in enumerate((8, 4, 4), 1)}
CASES: dict[str, dict[str, Any]] = {
    "monarch": {"rank": 8, "sizes": {"i1": 4, "o2": 4}},
    "monarch 32": {"rank": 2},
    "btt": {"rank": 2},
    "gralora": {"rank": 16, "sizes": FOURS},
    "gralora 8": {"rank": 8, "sizes": EIGHTS},
    "mora": {},
    "kadaptation": {"rank": 32, "sizes": {"o1": 32, "i1": 32}},
    "tera": {"rank": TERA_RANKS},
    "quanta": {"rank": 8, "sizes": FOUR_AXES},
    "tt_lora": {"rank": 8},
    "lotr_tt": {"rank": 32},
    "krona": {},
    "lokr": {"rank": 8},
}
COPIES = ("clone", "copy_", "_to_copy")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


@dataclass
class Counts:
    """What a pass does: copies and the numbers in them, products, and other passes over as many numbers."""

    copies: int = 0
    copied: int = 0
    products: int = 0
    passes: int = 0

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, one.name) - getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True)
class Step:
    """A forward pass, the gradient of its result, and the arrays that get a gradient."""

    forward: Callable[[], Tensor]
    gradient: Tensor
    leaves: tuple[Tensor, ...]

    def __call__(self) -> None:
        """Run both passes."""
        self.pull(self.forward())

    def pull(self, made: Tensor) -> tuple[Tensor, ...]:
        """Run the backward pass. The gradients are not added up: that copies one which autograd passes on as it is."""
        return torch.autograd.grad(made, self.leaves, self.gradient)

    def count(self) -> tuple[Counts, Counts]:
        """Count what the forward and the backward pass do with arrays of at least half the size of the gradient."""
        with Counter(self.gradient.numel() // 2) as counter:
            made = self.forward()
            first = Counts(**vars(counter.counts))
            gradients = self.pull(made)
            for one in gradients:  # one that lies otherwise than its array takes as long as a copy where it is added
                if one.numel() >= counter.least and not one.is_contiguous():
                    counter.counts.copies += 1
                    counter.counts.copied += one.numel()
        return first, counter.counts - first


class Counter(TorchDispatchMode):
    """Counts what runs inside it, on arrays of at least so many numbers; products of any size.

    A product copies an operand in which no matrix has an axis of stride 1, since the library for matrices needs one.
    """

    def __init__(self, least: int) -> None:
        """Count arrays of at least so many numbers."""
        super().__init__()
        self.least = least
        self.counts = Counts()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count it."""
        result = func(*args, **(kwargs or {}))
        name, counts = func.__name__.split(".")[0], self.counts
        arrays = [one for one in (*args, *(kwargs or {}).values(), result) if isinstance(one, Tensor)]
        largest = max((one.numel() for one in arrays), default=0)
        if name in PRODUCTS:
            counts.products += 1
            sides = [one for one in args if isinstance(one, Tensor)][-2:]
            for side in (*sides, *([kwargs["out"]] if kwargs and "out" in kwargs else [])):
                if side.numel() >= self.least and not is_readable(side):
                    counts.copies += 1
                    counts.copied += side.numel()
        elif largest >= self.least and name in COPIES:
            counts.copies += 1
            counts.copied += largest
        elif largest >= self.least and isinstance(result, Tensor) and not func.is_view and name != "detach":
            counts.passes += not name.startswith(("empty", "new_empty", "_unsafe_view"))
        return result


def is_readable(array: Tensor) -> bool:
    """Return whether each of these matrices has an axis of stride 1 and no overlap, as a library needs them."""
    rows, columns = array.shape[-2:]
    down, along = array.stride()[-2:]
    return (along == 1 and down >= max(1, columns)) or (down == 1 and along >= max(1, rows)) or 1 in (rows, columns)


def network_of(case: str, width: int = WIDTH, cases: Mapping[str, dict[str, Any]] = CASES) -> Network:
    """Return the network of a case at one square weight."""
    spec = getattr(families, case.split(maxsplit=1)[0])()
    return spec.bind(grid(layers=1, kinds={"q": (width, width)}), **cases[case]).networks[0]


def equal_lora(network: Network, tokens: int) -> Network:
    """Return the LoRA whose flops in both passes are those of the plan of this network, as nearly as a rank can be."""
    order = plan(network, tokens=tokens)
    outer, inner = (network.volume(modes) for modes in (network.out_modes, network.in_modes))
    rank = max(1, round((order.forward_flops + order.backward_flops) / (6 * tokens * (outer + inner))))
    return families.lora().bind(grid(layers=1, kinds={"q": (outer, inner)}), rank=rank).networks[0]


def step_of(
    network: Network, tokens: int, device: str = "cpu", dtype: torch.dtype = torch.float32, machine: str = ""
) -> Step:
    """Return the two passes of the update of random values at one site, in code for a machine: that of the device."""
    torch.manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    outer, inner = (network.volume(modes) for modes in (network.out_modes, network.in_modes))
    code, factors = lower_apply(network, tokens, machine=machine or device), []
    for node in (list(network.nodes)[number] for number in nodes_read(network, tokens)):
        shape = [network.sizes[mode] for mode in network.local_modes(node)]
        factors.append((draw(*shape) / math.prod(shape) ** 0.25).requires_grad_(network.is_trained(node)))
    x, y, gradient = draw(tokens, inner).requires_grad_(), draw(tokens, outer).requires_grad_(), draw(tokens, outer)
    leaves = [one for one in (x, y, *factors) if one.requires_grad]
    return Step(lambda: code(y, x, *factors), gradient, tuple(leaves))


def row(case: str, tokens: int, rounds: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Time a case beside its LoRA, and count its copies in arrays of tokens x width."""
    network = network_of(case)
    lora = equal_lora(network, tokens)
    steps = {"own": step_of(network, tokens, device, dtype), "lora": step_of(lora, tokens, device, dtype)}
    counts = steps["own"].count()
    times = medians(steps, rounds)
    unit = tokens * WIDTH
    return {
        "family": case,
        "tokens": tokens,
        "us": times["own"] * 1e6,
        "rank of LoRA": lora.sizes["r"],
        "/ LoRA": times["own"] / times["lora"],
        **{f"copied {name}": one.copied / unit for name, one in zip(("forward", "backward"), counts, strict=True)},
        "products": sum(one.products for one in counts),
        "other passes": sum(one.passes for one in counts),
    }


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "")
    dtype = getattr(torch, options.dtype)
    rows = [row(case, tokens, options.rounds, options.device, dtype) for case in CASES for tokens in TOKENS]
    report(options, rows)


if __name__ == "__main__":
    main()
