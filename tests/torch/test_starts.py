"""Starting values computed from the weights of a model: its outputs do not change, and a file restores them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tnadapt
from tnadapt import AdapterSpec, SiteError, families, frozen, initializers, raw, trainable, zeros
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


def parts_of_svd(*kinds):
    """Return a spec whose factors are these parts of the SVD of the host, with trained factors on their open modes."""
    factors = {
        "left": frozen("out k", init=initializers.host("left")),
        "values": frozen("k", init=initializers.host("values")),
        "right": frozen("k in", init=initializers.host("right")),
    }
    ends = {"left": ("B", trainable("out k")), "right": ("A", trainable("k in"))}
    trained = dict(end for kind, end in ends.items() if kind not in kinds) | {"d": trainable("k", init=zeros())}
    return AdapterSpec(name="_".join(kinds), weight="out in", factors={k: factors[k] for k in kinds} | trained)


SVDS = [
    families.svdiff(),
    families.soda(order=2),
    *(parts_of_svd(*kinds.split()) for kinds in ("left", "right", "values", "left values", "left values right")),
]
svds = pytest.mark.parametrize("spec", SVDS, ids=lambda spec: spec.name)


def with_parts(spec, shape=(24, 40), **words):
    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(*reversed(shape), bias=False))
    state = attach(host, spec, target_modules=["0"], overparametrized=True, **words)
    with torch.no_grad():
        for parameter in state.parameters():
            parameter.normal_(std=0.1)
    return host, state


@svds
@pytest.mark.parametrize("words", [{}, {"blocks": {"0": (2, 4)}}], ids=["whole", "blocks"])
def test_a_weight_that_changed_since_its_svd_became_a_factor_is_not_saved(spec, words, tmp_path):
    host, state = with_parts(spec, **words)
    weight = host[0].weight.data
    before, file = weight.clone(), tmp_path / "a"
    state.save(file)
    bits = file.read_bytes()
    for change in (0.05 * before.std() * torch.randn(before.shape) + 0.05 * before, before.flip(0).flip(1)):
        weight.add_(change)
        with pytest.raises(SiteError, match=r"^0.*: expected the weight that the adapter was attached to, since its"):
            state.save(file)
        assert file.read_bytes() == bits
        weight.copy_(before)
    state.save(file)
    assert file.read_bytes() == bits


@svds
def test_a_cast_or_a_merge_is_no_change_of_the_svd(spec, tmp_path):
    host, state = with_parts(spec)
    state.save(tmp_path / "one")
    state.merge()
    state.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    state.unmerge()
    host.to(torch.bfloat16)
    state.save(tmp_path / "three")


def test_singular_values_in_another_order_are_a_change(tmp_path):
    host, state = with_parts(families.svdiff(), shape=(6, 6))
    with torch.no_grad():
        u, s, v = torch.linalg.svd(host[0].weight.double())
        host[0].weight.copy_(u @ torch.diag(s.flip(0)) @ v)
    with pytest.raises(SiteError, match="since its SVD is a factor, got another"):
        state.save(tmp_path / "a")


def test_a_weight_of_zeros_or_of_low_rank_is_decomposed_and_saved(tmp_path):
    for rank in (0, 2):
        host = nn.Sequential(nn.Linear(40, 24, bias=False))
        with torch.no_grad():
            host[0].weight.copy_(torch.randn(24, rank) @ torch.randn(rank, 40))
        state = attach(host, families.svdiff(), target_modules=["0"])
        assert not state.delta("0").any()
        with torch.no_grad():
            for value in state.parameters():
                value.fill_(0.5)
        torch.testing.assert_close(torch.linalg.svdvals(state.delta("0")), torch.full((24,), 0.5))  # of an isometry
        wanted = host(torch.eye(40)).detach()
        state.save(tmp_path / "a")
        state.detach()
        load(host, tmp_path / "a")
        assert torch.equal(host(torch.eye(40)), wanted)


@svds
def test_a_folder_for_peft_has_the_svd_of_the_attach_and_takes_no_other(spec, tmp_path, monkeypatch):
    host, state = with_parts(spec)
    weight = host[0].weight.data
    weight.add_(0.1 * torch.randn(weight.shape))
    decompose, seen = np.linalg.svd, []
    monkeypatch.setattr(np.linalg, "svd", lambda matrix, **more: seen.append(matrix) or decompose(matrix, **more))
    state.save_as_lora(tmp_path, rank=24)
    assert not any(np.array_equal(matrix, weight.double()) for matrix in seen)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    a, b = (next(value for key, value in tensors.items() if word in key) for word in ("lora_A", "lora_B"))
    alpha = json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"]
    assert torch.allclose(alpha / 24 * b @ a, state.delta("0"), atol=1e-5)
