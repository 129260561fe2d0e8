"""Measure the bytes that one adapted linear layer saves for its backward pass, without the weights."""

import sys
from collections.abc import Callable

import torch
from timing import arguments, report
from torch import Tensor, nn

import tnadapt_torch
from tnadapt import SiteError, families

WIDTH, TOKENS, RANK, HEAD = 1024, 2048, 8, 16


def saved_bytes(run: Callable[[], Tensor], free: set[int]) -> tuple[int, set[int]]:
    """Return the bytes of the distinct storages that autograd saves during `run`, except those in `free`; and which."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in free:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(kept.values()), set(kept)


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "")
    options.rounds, rows = 1, []  # nothing is timed
    for family in families.__all__:
        torch.manual_seed(0)
        host = nn.ModuleDict({"q": nn.Linear(WIDTH, WIDTH, bias=False)}).to(options.device)
        spec = getattr(families, family)()
        sizes = {mode: HEAD for mode, rule in spec.sizes.items() if getattr(rule, "kind", "") == "required"}
        words = {"rank": RANK if spec.free_bonds else None, "sizes": sizes, "seed": 0, "overparametrized": True}
        try:
            state = tnadapt_torch.attach(host, spec, target_modules=["q"], **words)
        except SiteError as error:  # a layer alone has no tasks, say
            print(f"{family}: {str(error).partition(chr(10))[0]}", file=sys.stderr)
            continue
        state.to(options.device)
        x = torch.randn(TOKENS, WIDTH, device=options.device, requires_grad=True)
        weights = {tensor.untyped_storage().data_ptr() for tensor in (*host.parameters(), *host.buffers())}
        total, kept = saved_bytes(lambda host=host, x=x: host["q"](x), weights)
        rows.append(
            {
                "family": family,
                "saved KB": total / 1e3,
                "of x": total / (x.numel() * x.element_size()),
                "x is saved": x.untyped_storage().data_ptr() in kept,
            }
        )
    lora = next(row["saved KB"] for row in rows if row["family"] == "lora")
    report(options, [row | {"/ lora": row["saved KB"] / lora} for row in rows])


if __name__ == "__main__":
    main()
