"""What the code of full-rank families copies, counted: arrays of at least half of tokens x width, in both passes."""

import sys
from pathlib import Path

import pytest
import torch

from tests import modules

FOLDER = Path(__file__).parents[2] / "benchmarks"
TOKENS = 16384
# The copies of the forward and of the backward pass on a GPU, and on a CPU, where a copy is cheaper than reading or
# writing short rows far apart. A library does not write an output whose innermost mode is a batch: its gradient
# is copied once for all that read it, and once more if the batch is large.
ALLOWED = {
    "btt": ((0, 0), (1, 1)),
    "gralora": ((0, 0), (0, 0)),
    "gralora 8": ((0, 0), (1, 1)),
    "kadaptation": ((0, 0), (0, 0)),
    "krona": ((0, 0), (0, 0)),
    "lokr": ((0, 0), (0, 0)),
    "lotr_tt": ((0, 0), (0, 0)),
    "monarch": ((0, 1), (0, 1)),
    "monarch 32": ((0, 2), (1, 3)),
    "mora": ((0, 0), (0, 0)),
    "quanta": ((0, 1), (1, 3)),
    "tera": ((0, 0), (0, 0)),
    "tt_lora": ((0, 0), (0, 0)),
}


@pytest.fixture(scope="module")
def dense():
    """Import the benchmark that counts, and its neighbours under their plain names."""
    sys.path.insert(0, str(FOLDER))
    try:
        import dense

        yield dense
    finally:
        sys.path.remove(str(FOLDER))
        modules.forget()


def test_every_case_of_the_benchmark_has_a_bound(dense):
    assert ALLOWED.keys() == dense.CASES.keys()


@pytest.mark.parametrize("case", ALLOWED)
@pytest.mark.parametrize(("machine", "place"), [("cuda", 0), ("cpu", 1)])
def test_no_more_is_copied_than_was_recorded(case, machine, place, dense):
    """On tensors without values."""
    forward, backward = dense.step_of(dense.network_of(case), TOKENS, "meta", machine=machine).count()
    for counts, allowed in zip((forward, backward), ALLOWED[case][place], strict=True):
        assert counts.copies <= allowed
        assert counts.copied <= allowed * TOKENS * dense.WIDTH
    assert 2 * forward.products >= backward.products >= forward.products > 0


def test_copies_are_counted(dense):
    """By hand: each of these copies one array of 64 numbers, or reads it where it lies."""
    value, batch = torch.randn(8, 8), torch.randn(4, 4, 4)
    for operation, copies in (
        (value.mT.contiguous, 1),
        (value.clone, 1),
        (lambda: value.reshape(4, 16), 0),
        (lambda: value.mT.reshape(4, 16), 1),
        (lambda: value @ value.mT, 0),
        (lambda: torch.bmm(batch.permute(1, 0, 2), batch.permute(2, 1, 0).contiguous()), 1),
        (lambda: torch.bmm(batch.permute(1, 0, 2), batch.permute(1, 2, 0)), 0),
        (lambda: torch.bmm(batch.permute(2, 0, 1), batch), 1),
        (lambda: torch.bmm(batch, batch, out=torch.empty(4, 4, 4).permute(2, 0, 1)), 1),
        (lambda: torch.bmm(batch, batch, out=torch.empty(4, 4, 4).permute(1, 0, 2)), 0),
    ):
        with dense.Counter(64) as counter:
            operation()
        assert (counter.counts.copies, counter.counts.copied) == (copies, 64 * copies)
        with dense.Counter(65) as counter:
            operation()
        assert counter.counts.copies == 0


def test_both_passes_of_a_lora_are_counted(dense):
    lora = dense.equal_lora(dense.network_of("krona"), TOKENS)
    forward, backward = dense.step_of(lora, TOKENS, "meta", machine="cpu").count()
    assert (forward.products, backward.products) == (2, 4)
    assert (forward.copies, backward.copies) == (0, 0)
