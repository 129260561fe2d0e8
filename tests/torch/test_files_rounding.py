"""What a file changes in an adapter that was cast to bfloat16: its frozen factors are drawn again, unrounded."""

import pytest
import torch

from tests.torch import hosts
from tnadapt import families
from tnadapt_torch import attach, load

WITHOUT_FROZEN, WITH_FROZEN = ("lora", "lotr"), ("vera", "tera", "tlora")


def saved_and_loaded(state, path, dtype=torch.float32):
    state.save(path)
    model = hosts.toy(dtype=dtype)
    return model, load(model, path)


def frozen_of(state):
    return {name for name, slot in state.adapter.slots.items() if not slot.factor.trainable}


@pytest.mark.parametrize("family", [*WITHOUT_FROZEN, *WITH_FROZEN])
def test_a_file_rounds_no_trained_factor_and_unrounds_frozen_ones(family, tmp_path):
    model = hosts.toy()
    state = hosts.adapt(model, family).to(torch.bfloat16)
    again, loaded = saved_and_loaded(state, tmp_path / "a")
    frozen, words = frozen_of(state), hosts.words()
    assert bool(frozen) == (family in WITH_FROZEN)
    for name, rounded in state.params().items():
        value = loaded.params()[name]
        assert value.dtype == torch.float32
        assert torch.equal(value, rounded.float()) == (name not in frozen)
        assert torch.all((value - rounded.float()).abs() <= 2**-8 * value.abs())  # half a unit of bfloat16
    assert torch.equal(again(words), model(words)) == (not frozen)
    hosts.close(again(words), model(words), 2e-2)
    loaded.to(torch.bfloat16)
    assert all(torch.equal(value, loaded.params()[name]) for name, value in state.params().items())
    assert torch.equal(again(words), model(words))


@pytest.mark.parametrize("family", [*WITHOUT_FROZEN, *WITH_FROZEN])
def test_on_a_host_in_bfloat16_the_outputs_are_the_same(family, tmp_path):
    """A site computes in the dtype of its input, and so rounds the frozen factors itself."""
    model = hosts.toy(dtype=torch.bfloat16)
    state = hosts.adapt(model, family).to(torch.bfloat16)
    again, _ = saved_and_loaded(state, tmp_path / "a", torch.bfloat16)
    assert torch.equal(again(hosts.words()), model(hosts.words()))


def test_the_starting_values_of_a_centered_adapter_are_unrounded_too(tmp_path):
    spec = families.tt_lora(out_order=1, in_order=2, start="centered")
    state = attach(hosts.toy(), spec, target_modules=hosts.TARGETS, rank=2, seed=3).to(torch.bfloat16)
    _, loaded = saved_and_loaded(state, tmp_path / "a")
    starts, found = (dict(one.start.named_buffers()) for one in (state, loaded))
    assert starts
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert any(not torch.equal(value, starts[name].float()) for name, value in found.items())
    loaded.to(torch.bfloat16)
    assert all(torch.equal(value, starts[name]) for name, value in loaded.start.named_buffers())
