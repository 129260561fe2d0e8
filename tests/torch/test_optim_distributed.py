"""Rite and Preconditioned on two processes, with replicas and with shards, take the steps of one."""

from functools import cache

import pytest
import torch

from tests.processes import fork_all
from tests.thorough import IS_THOROUGH
from tests.torch import hosts
from tests.torch.optim_worker import CASES, KINDS, main, train

WORLD, TIMEOUT = 2, 240
CHOSEN = CASES if IS_THOROUGH else CASES[:2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed"),
]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    fork_all(main, [(folder, rank, WORLD, CHOSEN) for rank in range(WORLD)], TIMEOUT)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@cache
def in_one(case):
    return train(case, lambda model: model, lambda words: words)


@pytest.mark.parametrize("case", CHOSEN)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_take_the_steps_of_one(of_two, kind, case):
    wanted = in_one(case)
    for found in of_two:
        assert found[kind, case].keys() == wanted.keys()
        for name, value in wanted.items():
            hosts.close(found[kind, case][name], value.detach(), 1e-4)
