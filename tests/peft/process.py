"""One process of a distributed run under PEFT: `main(kind, folder, rank, world)` writes its gradients."""

import warnings
from pathlib import Path

import torch
import torch.distributed as dist

warnings.simplefilter("ignore")  # warnings from importing PEFT

from peft import get_peft_model  # noqa: E402  (after the line that silences its warnings)

from tests.peft.models import SPECS, config, llama, wake  # noqa: E402

TEXTS = torch.randint(0, 32, (4, 5), generator=torch.Generator().manual_seed(3))


def train(kind: str, name: str, texts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute the gradients of the mean loss over these texts and those of the other processes."""
    model = get_peft_model(llama(), config(name))
    state = model.base_model.states()["default"]
    wake(state)
    called: torch.nn.Module = model
    if kind == "ddp":
        called = torch.nn.parallel.DistributedDataParallel(model)
    if kind == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for block in model.base_model.model.model.layers:
            fully_shard(block)
        called = fully_shard(model)
    called(input_ids=texts).logits.square().mean().backward()
    found = {key: parameter.grad for key, parameter in state.named_parameters()}
    return {key: value.full_tensor() if hasattr(value, "full_tensor") else value for key, value in found.items()}


def main(kind: str, folder: Path, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save({name: train(kind, name, TEXTS.chunk(world)[rank]) for name in SPECS}, folder / f"{rank}.pt")
    dist.destroy_process_group()
