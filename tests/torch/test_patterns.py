"""Weights with zeros: a LoSA changes none of them, in any way of running it, and learns from the others."""

import pytest
import torch

from tnadapt import families
from tnadapt_torch import attach, load


def sparse(seed=0, dtype=torch.float32):
    """Return a model of two layers, two of each four of whose weights are 0."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Tanh(), torch.nn.Linear(12, 8)).to(dtype)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            fours = layer.weight.view(-1, 4)
            fours.scatter_(1, torch.rand(fours.shape).argsort(1)[:, :2], 0)
    return model


def trained(model, **words):
    """Attach a LoSA, and train it for a few steps away from its start."""
    state = attach(model, families.losa(), target_modules=["0", "2"], rank=3, seed=0, **words)
    x = torch.randn(16, 8, dtype=model[0].weight.dtype)
    steps = torch.optim.SGD(state.parameters(), lr=0.05)
    for _ in range(5):
        steps.zero_grad()
        (model(x) - x.flip(1)).square().mean().backward()
        steps.step()
    return state, x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_zero_of_the_weight_stays_a_zero_of_the_merged_weight(dtype):
    model = sparse(dtype=dtype)
    before = [model[at].weight.detach().clone() for at in (0, 2)]
    state, x = trained(model)
    wanted = model(x).detach()
    state.merge()
    for at, weight in zip((0, 2), before, strict=True):
        assert torch.equal(model[at].weight == 0, weight == 0)
        assert not torch.equal(model[at].weight, weight)
    error = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float64: 1e-12}[dtype]
    assert torch.allclose(model(x), wanted, rtol=0, atol=error)
    state.unmerge()
    assert all(torch.equal(model[at].weight, weight) for at, weight in zip((0, 2), before, strict=True))


def test_a_folded_update_has_the_zeros_too():
    plain, folded = sparse(), sparse()
    (one, x), (two, _) = trained(plain), trained(folded, fold=True)
    for a, b in zip(one.params().values(), two.params().values(), strict=True):
        b.data.copy_(a)
    assert torch.allclose(folded(x), plain(x), rtol=0, atol=1e-6)
    zeros = plain[0].weight == 0
    assert not two.delta("0")[zeros].any()
    assert two.delta("0")[~zeros].any()


def test_the_pattern_is_read_at_each_call():
    """A weight that is pruned further after attaching prunes the update."""
    model = sparse()
    state, _ = trained(model)
    with torch.no_grad():
        model[0].weight[3] = 0
    assert not state.delta("0")[3].any()
    assert state.delta("0")[4].any()


def test_a_file_has_no_pattern(tmp_path):
    model = sparse()
    state, x = trained(model)
    state.save(tmp_path / "a.safetensors")
    again = sparse()
    loaded = load(again, tmp_path / "a.safetensors")
    assert torch.equal(again(x), model(x))
    assert {*loaded.params()} == {*state.params()}
    assert not [name for name in state.params() if "mask" in name]
