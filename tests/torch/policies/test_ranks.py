"""Two processes train the same chain, with replicas and with shards, and it is that of one process."""

import re

import numpy as np
import pytest
import torch

from tests.processes import fork_all
from tests.thorough import IS_THOROUGH
from tests.torch import hosts
from tests.torch.policies.ranks import CASES, PAIRS, SOME, main, train
from tnadapt.policies import load_chain

WORLD, TIMEOUT = 2, 120
CHOSEN = PAIRS if IS_THOROUGH else SOME

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which two processes wrote what they hold and saved."""
    folder = tmp_path_factory.mktemp("ranks")
    fork_all(main, [(folder, rank, WORLD, CHOSEN) for rank in range(WORLD)], TIMEOUT)
    return folder


@pytest.mark.parametrize(("kind", "case"), CHOSEN)
def test_all_processes_hold_the_chain_of_one(folder, kind, case, tmp_path):
    first, second = (torch.load(folder / f"{rank}.pt")[kind, case] for rank in range(WORLD))
    if (kind, case) == ("replicas after", "subset"):  # what was frozen when the wrapper came is never averaged
        for said in (first, second):
            assert re.search(r"SiteError: .* got \d+ that it does not know.*is made after that", said, re.DOTALL)
        return
    assert not isinstance(first, str), first
    alone = train("one", CASES[case], 0, 1, tmp_path / "chain")
    assert first.keys() == second.keys() <= alone.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        if value.abs().max() > 0:
            hosts.close(value, alone[name], 1e-4)
        else:
            assert not alone[name].any()
    files = [f"{kind} {case} {rank if kind.startswith('replicas') else ''}" for rank in range(WORLD)]
    chains = [load_chain(folder / file) for file in files]
    wanted = load_chain(tmp_path / "chain")
    for chain in chains:
        assert [one.seed for one, _ in chain.links] == [one.seed for one, _ in wanted.links]
        path = chain.weights[0]
        np.testing.assert_allclose(chain.delta(path), wanted.delta(path), rtol=0, atol=1e-4)
