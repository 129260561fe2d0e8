"""Under PEFT with DistributedDataParallel or FSDP2, two processes compute the gradients of one."""

import pytest
import torch

from tests.peft.models import SPECS, close
from tests.peft.process import TEXTS, main, train
from tests.processes import fork_all
from tests.thorough import left_to_laws

WORLD = 2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    left_to_laws("four processes import PEFT, which takes half a minute of CPU time"),
]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_compute_the_gradients_of_one(kind, tmp_path):
    fork_all(main, [(kind, tmp_path, rank, WORLD) for rank in range(WORLD)], 120)
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name in SPECS:
            wanted = train("one", name, TEXTS)
            assert found[name].keys() == wanted.keys()
            for key, gradient in wanted.items():
                close(found[name][key], gradient, 1e-5)
