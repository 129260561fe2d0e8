"""Two processes give the gradients of one: DistributedDataParallel and fully_shard."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.torch import hosts

WORKER = Path(__file__).with_name("worker.py")
TIMEOUT = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed"),
]


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def of_two(request, tmp_path_factory):
    """The gradients that each of two processes found: family -> name -> gradient."""
    folder, world = tmp_path_factory.mktemp(request.param), 2
    words = [[sys.executable, str(WORKER), request.param, str(rank), str(world), str(folder)] for rank in range(world)]
    jobs = [subprocess.Popen(word, stderr=subprocess.PIPE, text=True) for word in words]
    try:
        said = [job.communicate(timeout=TIMEOUT)[1] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    assert [job.returncode for job in jobs] == [0] * world, "\n".join(said)
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


@pytest.mark.parametrize("family", ["lora", "lotr", "tlora", "vera"])
def test_two_processes_find_the_gradients_of_one(of_two, family):
    wanted = in_one(family)
    for found in of_two:
        assert found[family].keys() == wanted.keys()
        for name, gradient in wanted.items():
            hosts.close(found[family][name], gradient)
