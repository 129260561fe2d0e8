"""Processes share a host by DistributedDataParallel, fully_shard or tensor parallelism: as one process, or refused."""

import pytest
import torch

from tests.processes import fork_all
from tests.thorough import left_to_laws
from tests.torch.parallel.life import KINDS
from tests.torch.parallel.process import main
from tests.torch.parallel.scenes import SCENES
from tests.torch.parallel.ways import SHARED

TIMEOUT = 1800  # what a process that waits for another one may take

# Each kind of adapter and each way to shard once: `PLAN-KIND`, see `Plan` and `KINDS` of life.py.
SOME = [
    "tensor-dora",
    "first,whole,freed-dora",
    "layers-fold",
    "layers-lora",
    "first,layers-vera",
    "whole,freed-tasks",
    "half,layers-householder",
    "half,first,layers-quanta",
    "only-saved",
    "ignored,layers-pissa",
    "first,tensor,sequence-lotr",
]
SHARDED = ["layers", "whole,freed", "half,layers", "only", "ignored,layers"]
SPLIT = ["tensor", "tensor,sequence"]
EVERY = [
    f"{plan}-{kind}"
    for way in [*SHARDED, *SPLIT]
    for plan in (way, f"first,{way}")
    for kind in KINDS
    # torch cannot split a weight that is parametrized; fully_shard before a folded update is refused, in a scene
    if not (kind == "fold" and (way in SPLIT) != plan.startswith("first"))
]
LONG = ["compiled_layers"]
GRIDS = [
    f"{plan}-{kind}" for plan in ("grid,layers", "first,grid,layers", "hybrid,layers") for kind in ("lotr", "saved")
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed"),
]
minutes = left_to_laws("it takes minutes")


def play(world, folder, whats):
    """Play scenes and lives with this many processes; return what went wrong, by scene or life and by process."""
    fork_all(main, [(folder, rank, world, *whats) for rank in range(world)], TIMEOUT)
    found = [torch.load(folder / f"{rank}.pt") for rank in range(world)]
    assert all(list(each) == list(whats) for each in found)
    return {f"{what} on {rank}": each[what] for rank, each in enumerate(found) for what in whats if each[what]}


def test_two_processes(tmp_path):
    assert play(2, tmp_path, [*(name for name in SCENES if name not in LONG), *SHARED, *SOME]) == {}


@minutes
@pytest.mark.parametrize("world", [1, 2])
def test_every_kind_in_every_way(world, tmp_path):
    assert play(world, tmp_path, [*(SCENES if world == 1 else LONG), *EVERY]) == {}


@minutes
def test_four_processes(tmp_path):
    assert play(4, tmp_path, GRIDS) == {}
