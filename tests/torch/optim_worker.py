"""One process of several, with optimizers that look at whole factors: `main(folder, rank, world, cases)`."""

from pathlib import Path

import torch
import torch.distributed as dist

from tests.torch import hosts
from tests.torch.worker import replicated, sharded
from tnadapt_torch.optim import Preconditioned, Rite

KINDS = ("replicas", "shards")
CASES = ("lora rite", "lotr preconditioned", "lora preconditioned", "lorta preconditioned")


def made(case, state):
    if case.endswith("rite"):
        return Rite(state, lr=1e-2)
    return Preconditioned(state, torch.optim.SGD(state.parameters(), lr=1e-2, momentum=0.9), damping=1e-2)


def train(case: str, wrap, share) -> dict[str, torch.Tensor]:
    """Return the factors after three steps, the last of them from a state that was saved and loaded."""
    model = hosts.toy()
    state = hosts.adapt(model, case.split(maxsplit=1)[0], modules_to_save=["score"])
    wrapped = wrap(model)
    optimizer = made(case, state)
    for step in range(3):
        if step == 2:
            kept, optimizer = optimizer.state_dict(), made(case, state)
            optimizer.load_state_dict(kept)
        optimizer.zero_grad()
        wrapped(share(hosts.words(4, seed=step))).square().mean().backward()
        optimizer.step()
    params = state.params() | state.saved.values()
    return {name: v.full_tensor() if hasattr(v, "full_tensor") else v for name, v in params.items()}


def main(folder: Path, rank: int, world: int, cases: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = {}
    for kind in KINDS:
        wrap = sharded if kind == "shards" else lambda model: replicated(model, by_accelerate=False)
        for case in cases:
            found[kind, case] = train(case, wrap, lambda words: words.chunk(world)[rank])
    torch.save({key: {n: v.detach() for n, v in one.items()} for key, one in found.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
