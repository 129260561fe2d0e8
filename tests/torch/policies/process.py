"""One process of two that train one adapter, each on its half of a batch: `main(folder, rank, world)`."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.torch import hosts
from tnadapt.policies import Budget, Rounding
from tnadapt_torch.policies import BudgetSchedule, RoundingSchedule

STEPS = 8


def schedule_of(kind: str, state, optimizer):
    if kind == "rounding":
        return RoundingSchedule(state, optimizer, Rounding({3: 3, 6: 2}), shapes="keep")
    return BudgetSchedule(state, optimizer, Budget(target=13, steps=7, warmup=1), shapes="keep")


def run(kind: str, way: str, rank: int, world: int) -> dict[str, object]:
    """Train; return the slices that are left, the schedule's state and the values."""
    model = hosts.toy()
    state = hosts.adapt(model, "lora", rank=4)
    if way == "replicas":
        wrapped = DistributedDataParallel(model)
    elif way == "shards":
        for layer in model.layers:
            fully_shard(layer)
        wrapped = fully_shard(model)
    else:
        wrapped = model
    optimizer = torch.optim.AdamW(state.parameters(), lr=1e-2)
    schedule = schedule_of(kind, state, optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        wrapped(hosts.words(4, seed=step).chunk(world)[rank]).square().mean().backward()
        optimizer.step()
        schedule.step()
    values = {name: torch.from_numpy(value) for name, value in state.arrays().items()}
    return {"state": schedule.state_dict(), "values": values}


def main(folder: Path, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    ways = [("budget", "replicas"), ("rounding", "replicas"), ("budget", "shards"), ("rounding", "shards")]
    found = {f"{kind} {way}": run(kind, way, rank, world) for kind, way in ways}
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
