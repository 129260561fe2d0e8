"""Starting values computed from the weights of a model: its outputs do not change, and a file restores them."""

import numpy as np
import pytest
import torch
from torch import nn

import tnadapt
from tnadapt import AdapterSpec, SiteError, families, raw, trainable
from tnadapt_torch import attach, load

READ = [
    families.pissa(),
    families.lora_xs(start="svd"),
    families.dota(order=2),
    families.lora_pt(),
    families.tcurlora(),
    families.lotr(start="svd"),
    families.abba(),
    AdapterSpec(
        name="drawn",
        weight="out in",
        factors={"A": trainable("out r"), "B": trainable("in r")},
        scale=raw(),
        start="centered",
    ),
]


@pytest.fixture
def host():
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)])


def train(host, state):
    x = torch.randn(16, 8)
    optimizer = torch.optim.Adam(state.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (host(x) - x.flip(0)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("spec", READ, ids=lambda spec: spec.name)
def test_attach_changes_no_output_and_load_restores_the_trained_model(spec, host, tmp_path):
    x = torch.randn(5, 8)
    before = host(x).detach()
    state = attach(host, spec, target_modules=r"\d\.0", rank=2, seed=0)
    assert torch.allclose(host(x), before, rtol=0, atol=1e-6)
    assert not any(state.delta(f"{layer}.0").any() for layer in range(3))
    train(host, state)
    after = host(x).detach()
    assert not torch.allclose(after, before, atol=1e-3)
    state.save(tmp_path / "a")
    updates = [state.delta(f"{layer}.0").detach() for layer in range(3)]
    state.detach()
    assert torch.equal(host(x), before)
    again = load(host, tmp_path / "a")
    assert torch.equal(host(x), after)
    for layer, update in enumerate(updates):
        assert torch.equal(again.delta(f"{layer}.0"), update)


def test_the_starting_values_equal_those_of_the_core(host):
    weights = {f"{layer}.0": host[layer][0].weight.detach().numpy() for layer in range(3)}
    state = attach(host, families.pissa(), target_modules=r"\d\.0", rank=2, seed=0)
    for name, value in tnadapt.init(state.adapter, weights).items():
        assert np.array_equal(state.params()[name].detach().numpy(), value.astype(np.float32))


def test_starting_values_from_weights_are_in_the_state_dict(host):
    attach(host, families.pissa(), target_modules=r"\d\.0", rank=2, seed=0)
    assert sum(name.endswith(":start") for name in host.state_dict()) == 6


def test_starting_values_from_an_integer_weight_raise(host):
    host[0][0].weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(SiteError, match=r"0\.0: expected a floating-point weight .*, got torch\.int8"):
        attach(host, families.pissa(), target_modules=r"\d\.0", rank=2, seed=0)
    assert not [name for name, _ in host.named_children() if name.startswith("tnadapt")]


def test_a_folder_for_peft_needs_one_decomposition_of_each_weight(host, tmp_path, monkeypatch):
    state = attach(host, families.svdiff(), target_modules=r"\d\.0")
    train(host, state)
    decompose, seen = np.linalg.svd, []
    monkeypatch.setattr(np.linalg, "svd", lambda matrix, **more: seen.append(matrix) or decompose(matrix, **more))
    state.save(tmp_path / "own")
    assert not seen
    state.save_as_lora(tmp_path / "lora", rank=8)
    of_weights = [m for m in seen if any(np.array_equal(m, host[n][0].weight.detach().double()) for n in range(3))]
    assert len(of_weights) == 3
