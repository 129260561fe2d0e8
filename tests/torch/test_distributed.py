"""Two processes compute the gradients of one, with replicas and with shards, under `accelerate` if it is installed."""

import importlib.util
import socket
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.processes import fork_all, run_all
from tests.thorough import IS_THOROUGH
from tests.torch import hosts
from tests.torch.worker import FAMILIES, KINDS, launched, main

WORKER = str(Path(__file__).with_name("worker.py"))
WORLD = 2
TIMEOUT = 120
# The flag for several processes is named after GPUs; processes that ask for the CPU communicate by gloo.
LAUNCH = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"
DEFAULTS = "--mixed_precision no --dynamo_backend no"  # given here, so that no config file of the user is read

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed"),
]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """Return the gradients of each of two processes: (kind, family) -> name -> gradient."""
    folder = tmp_path_factory.mktemp("two")
    if importlib.util.find_spec("accelerate") is None:
        fork_all(main, [(folder, rank, WORLD) for rank in range(WORLD)], TIMEOUT)
    elif IS_THOROUGH:  # the launcher and its processes import torch and accelerate anew
        run_all([[sys.executable, *LAUNCH.split(), *DEFAULTS.split(), WORKER, str(folder)]], TIMEOUT)
    else:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        fork_all(launched, [(folder, rank, WORLD, port) for rank in range(WORLD)], TIMEOUT)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@cache
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
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_compute_the_gradients_of_one(of_two, kind, family):
    wanted = in_one(family)
    for found in of_two:
        assert found[kind, family].keys() == wanted.keys()
        for name, gradient in wanted.items():
            hosts.close(found[kind, family][name], gradient)


def test_accelerate_launch_is_as_the_page_says(of_two):
    """The row of docs/guides/torch.md on several processes and devices; see `parallel/ways.py`."""
    pytest.importorskip("accelerate")
    assert [found["row"] for found in of_two] == [[]] * WORLD
