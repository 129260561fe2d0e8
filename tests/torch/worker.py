"""One process of a distributed run: train and write the gradients to FOLDER.

`accelerate launch ... worker.py FOLDER` sets rank and world; `launched` sets what it sets; `main` may be told them.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.torch import hosts  # needs the line above

FAMILIES = ("lora", "lotr", "lorta", "tlora", "vera")
KINDS = ("replicas", "shards")


def replicated(model: torch.nn.Module, *, by_accelerate: bool) -> torch.nn.Module:
    if not by_accelerate:
        return torch.nn.parallel.DistributedDataParallel(model)
    from accelerate import Accelerator

    return Accelerator().prepare(model)


def sharded(model: torch.nn.Module) -> torch.nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in model.layers:
        fully_shard(layer)
    return fully_shard(model)


def train(kind: str, family: str, rank: int, world: int, *, by_accelerate: bool) -> dict[str, torch.Tensor]:
    """Train for two steps; return the gradients of the mean loss over this process's part of the batch."""
    model = hosts.toy()
    state = hosts.adapt(model, family)
    wrapped = sharded(model) if kind == "shards" else replicated(model, by_accelerate=by_accelerate)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        wrapped(hosts.words(4).chunk(world)[rank]).square().mean().backward()
        optimizer.step()
    found = {name: p.grad for name, p in state.named_parameters()}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in found.items()}


def launched(folder: Path, rank: int, world: int, port: int) -> None:
    """Run as one of the processes of `accelerate launch`, which differs by what is in the environment."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_MIXED_PRECISION": "no"}
    os.environ |= {name: str(value) for name, value in (places | address).items()}
    main(folder)


def main(folder: Path, *place: int) -> None:
    torch.set_num_threads(1)
    if place:
        rank, world = place
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    else:
        from accelerate import PartialState

        rank, world = (state := PartialState(cpu=True)).process_index, state.num_processes
    found = {
        (kind, family): train(kind, family, rank, world, by_accelerate=not place)
        for kind in KINDS
        for family in FAMILIES
    }
    if not place:
        from tests.torch.parallel.ways import LAUNCHED, differences

        os.chdir(folder)
        found["row"] = differences(LAUNCHED["accelerate"])
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
