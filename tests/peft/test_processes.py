"""Under PEFT with DistributedDataParallel or FSDP2, two processes compute the mean of the gradients of their texts."""

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
def test_two_processes_compute_the_mean_of_what_one_computes_for_each(kind, tmp_path):
    """In float32 the gradients for all texts at once are off by 1e-5 themselves: those of queries are differences."""
    fork_all(main, [(kind, tmp_path, rank, WORLD) for rank in range(WORLD)], 120)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for name in SPECS:
        parts = [train("one", name, texts) for texts in TEXTS.chunk(WORLD)]
        for gradients in found:
            assert gradients[name].keys() == parts[0].keys()
            for key, gradient in gradients[name].items():
                close(gradient, sum(part[key] for part in parts) / WORLD)
