"""Two processes with halves of a batch decide alike, and as one process with the whole batch."""

import pytest
import torch

from tests.processes import fork_all
from tests.torch import hosts
from tests.torch.policies.process import main, run

WORLD, TIMEOUT = 2, 240

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed"),
]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    fork_all(main, [(folder, rank, WORLD) for rank in range(WORLD)], TIMEOUT)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("way", ["replicas", "shards"])
@pytest.mark.parametrize("kind", ["budget", "rounding"])
def test_processes_decide_alike(of_two, kind, way):
    first, second = (found[f"{kind} {way}"] for found in of_two)
    assert first["state"] == second["state"]
    for name, value in first["values"].items():
        assert torch.equal(second["values"][name], value), name
    alone = run(kind, "alone", 0, 1)
    assert alone["state"]["alive"]
    assert first["state"]["alive"] == alone["state"]["alive"]
    if kind == "rounding":
        return  # singular vectors have signs of their own
    for name, value in first["values"].items():
        if alone["values"][name].any():
            hosts.close(value, alone["values"][name], 1e-3)  # eight steps of Adam, which divides small gradients
