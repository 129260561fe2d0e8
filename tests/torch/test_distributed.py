"""Two processes give the gradients of one: replicas, by `accelerate launch` where it is there, and fully_shard."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.torch import hosts
from tests.torch.worker import FAMILIES

WORKER = Path(__file__).with_name("worker.py")
TIMEOUT = 60
REPLICAS = "accelerate" if importlib.util.find_spec("accelerate") else "ddp"  # accelerate's replicas are torch's
# The flag that asks for several processes is named after GPUs; those that ask for a CPU themselves meet by gloo.
LAUNCH = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed"),
]


@pytest.fixture(scope="module", params=[REPLICAS, "fsdp"])
def of_two(request, tmp_path_factory):
    """The gradients that each of two processes found: family -> name -> gradient."""
    folder, world = tmp_path_factory.mktemp(request.param), 2
    told = [str(WORKER), request.param, str(folder)]
    words = [[sys.executable, *told, str(rank), str(world)] for rank in range(world)]
    if request.param == "accelerate":
        words = [[sys.executable, *LAUNCH.split(), "--mixed_precision", "no", "--dynamo_backend", "no", *told]]
    jobs = [subprocess.Popen(word, stderr=subprocess.PIPE, text=True) for word in words]
    try:
        said = [job.communicate(timeout=TIMEOUT)[1] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    assert [job.returncode for job in jobs] == [0] * len(jobs), "\n".join(said)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def in_one(family):
    model = hosts.toy()
    state = hosts.adapt(model, family)
    optimizer = torch.optim.SGD(state.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(hosts.words(4)).square().mean().backward()
        optimizer.step()
    return hosts.grads(state)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_find_the_gradients_of_one(of_two, family):
    wanted = in_one(family)
    for found in of_two:
        assert found[family].keys() == wanted.keys()
        for name, gradient in wanted.items():
            hosts.close(found[family][name], gradient)
