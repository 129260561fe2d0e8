"""Compiled training beside eager training: any number of tokens, what a user does in between, dtypes and modes."""

import copy

import pytest
import torch

from tests.thorough import IS_THOROUGH, left_to_laws
from tests.torch import hosts
from tests.torch.seam import compiled


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batch(*shape, dtype=torch.float64):
    return hosts.normal(*shape, dtype=dtype)


LENGTHS = {  # each with the number of graphs: torch makes code of its own for a length of 1 or 0
    "any": ([5, 7, 9, 12, 6], 1),
    "with 1": ([5, 7, 1, 12, 6], 2),
    "with 1 and 0": ([5, 1, 7, 0, 12], 3),
}
CASES = [(name, axes) for name in LENGTHS for axes in (2, 3)] if IS_THOROUGH else [("any", 3), ("with 1 and 0", 2)]


@pytest.mark.parametrize(("lengths", "axes"), CASES)
def test_training_at_five_lengths(lengths, axes):
    (lengths, graphs), model = LENGTHS[lengths], compiled.host()
    compiled.adapt(model, "lora")
    backend = compiled.Counting(both=IS_THOROUGH)
    called = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    for length in lengths:
        x = batch(*(2, length, 8)[3 - axes :])
        compiled.agree(compiled.answers(model, x, called), compiled.answers(model, x))
    assert backend.graphs == graphs


@left_to_laws("test_compile.py has such lengths, without 1")
def test_lengths_that_torch_finds_to_change_by_itself():
    model = compiled.host()
    compiled.adapt(model, "vera")
    backend = compiled.Counting(both=IS_THOROUGH)
    called = torch.compile(model, fullgraph=True, backend=backend)
    for length in [5, 7, 1, 12, 6]:
        x = batch(2, length, 8)
        compiled.agree(compiled.answers(model, x, called), compiled.answers(model, x))
    assert backend.graphs <= 3  # two recompilations: a length of 7, and one of 1


def evaluate(model, state, called):
    model.eval()
    with torch.no_grad():
        called(batch(3, 8))
    model.train()


def merge_and_unmerge(model, state, called):
    wanted = called(batch(3, 8)).detach()
    state.merge()
    hosts.close(called(batch(3, 8)), wanted, 1e-9)
    state.unmerge()


def disable(model, state, called):
    with state.disabled():
        hosts.close(called(batch(3, 8)), compiled.host()(batch(3, 8)), 1e-9)


def add_another(model, state, called):
    compiled.adapt(model, "vera", "another")


def take_off(model, state, called):
    state.detach()
    compiled.adapt(model, "tera", "another")


# test_stale.py switches to evaluation and disables adapters, too.
CHANGES = [merge_and_unmerge, add_another, take_off, *([evaluate, disable] if IS_THOROUGH else [])]


@pytest.mark.parametrize("change", CHANGES)
def test_training_goes_on_after(change):
    model = compiled.host()
    state = compiled.adapt(model, "lora")
    called = torch.compile(model, fullgraph=True, backend=compiled.Counting(both=IS_THOROUGH))
    x = batch(2, 3, 8)
    compiled.agree(compiled.answers(model, x, called), compiled.answers(model, x))
    change(model, state, called)
    compiled.agree(compiled.answers(model, x, called), compiled.answers(model, x))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
@pytest.mark.parametrize("apart", [False, True])
def test_training_of_an_adapter_that_is_attached_after_the_host_was_compiled(apart):
    model = compiled.host(2)
    for module in model.layers if apart else [model]:
        module.compile(fullgraph=True, backend=compiled.Counting(both=IS_THOROUGH))
    plain = compiled.host(2)
    x = batch(2, 3, 8)
    compiled.agree(compiled.answers(model, x), compiled.answers(plain, x))
    compiled.adapt(model, "lora")
    compiled.adapt(plain, "lora")
    compiled.agree(compiled.answers(model, x), compiled.answers(plain, x))


@pytest.mark.parametrize("backend", ["aot_eager", *(["inductor"] if IS_THOROUGH else [])])
def test_factors_of_float32_on_a_host_of_bfloat16(backend):
    """Eager and compiled code round at different places, so both are compared with the same model in float32."""
    model = compiled.host(2, torch.bfloat16)
    compiled.adapt(model, "lora")
    called = torch.compile(model, fullgraph=True, backend=backend)
    x = batch(6, 8, dtype=torch.bfloat16)
    exact = compiled.answers(copy.deepcopy(model).float(), x.float())
    eager = compiled.errors(compiled.answers(model, x), exact)
    found = compiled.answers(model, x, called)
    for name, error in compiled.errors(found, exact).items():
        assert error <= max(2 * eager[name], 2e-2), name
    assert {value.dtype for name, value in found.items() if "tnadapt" in name} == {torch.float32}


@left_to_laws("the C++ compiler takes seconds")
def test_the_mode_for_cuda_graphs_gives_the_same_numbers():
    """On a CPU, torch compiles without graphs of CUDA."""
    model = compiled.host()
    compiled.adapt(model, "lora")
    called = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    for seed in range(3):
        x = hosts.normal(6, 8, seed=seed, dtype=torch.float64)
        compiled.agree(compiled.answers(model, x, called), compiled.answers(model, x))
