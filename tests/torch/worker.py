"""One process of a distributed run, which writes the gradients that it found to FOLDER.

`worker.py KIND FOLDER RANK WORLD`, or `accelerate launch ... worker.py accelerate FOLDER`, which tells rank and world.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.torch import hosts  # the line above makes it known

FAMILIES = ("lora", "lotr", "lorta", "tlora", "vera")


def sharded(model: torch.nn.Module) -> torch.nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in model.layers:
        fully_shard(layer)
    return fully_shard(model)


def wrapped_by(kind: str, model: torch.nn.Module) -> torch.nn.Module:
    match kind:
        case "ddp":
            return torch.nn.parallel.DistributedDataParallel(model)
        case "fsdp":
            return sharded(model)
        case _:
            from accelerate import Accelerator

            return Accelerator().prepare(model)


def train(kind: str, family: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Gradients of the mean loss over this process's part of the batch, after two steps."""
    model = hosts.toy()
    state = hosts.adapt(model, family)
    wrapped = wrapped_by(kind, model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        wrapped(hosts.words(4).chunk(world)[rank]).square().mean().backward()
        optimizer.step()
    found = {name: p.grad for name, p in state.named_parameters()}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in found.items()}


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    if kind == "accelerate":
        from accelerate import PartialState

        rank, world = (state := PartialState(cpu=True)).process_index, state.num_processes
    else:
        rank, world = int(sys.argv[3]), int(sys.argv[4])
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save({family: train(kind, family, rank, world) for family in FAMILIES}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
