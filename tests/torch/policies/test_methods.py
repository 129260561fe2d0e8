"""COLA, ReLoRA, RAC-LoRA and XGBLoRA: what each does at a restart, and which adapters it refuses."""

import numpy as np
import pytest
import torch

from tests.torch import hosts
from tests.torch.policies.test_restarts import PATH, train, weights_of
from tnadapt import SiteError, families
from tnadapt_torch import attach
from tnadapt_torch.policies import cola, rac_lora, relora, xgblora


def made(spec, method, *, rank=2, lr=0.05, **more):
    model = hosts.toy()
    state = attach(model, spec, target_modules=hosts.TARGETS, rank=rank, seed=3)
    optimizer = torch.optim.AdamW(state.parameters(), lr=lr)
    return model, state, optimizer, method(state, optimizer, 3, **more)


def test_cola_chains_any_spec():
    for spec in (families.lora(), families.lotr(), families.vera()):
        model, state, optimizer, chain = made(spec, cola)
        train(model, state, chain, optimizer, 6)
        assert len(optimizer.state) == 0
        assert len(chain.links) == 2


def test_relora_prunes_the_moments():
    model, state, optimizer, chain = made(families.lora(), relora, warmup_steps=2)
    assert [chain.warmup(step) for step in range(4)] == [0.5, 1.0, 1.0, 0.5]
    train(model, state, chain, optimizer, 3)
    kept = torch.cat([optimizer.state[one]["exp_avg"].flatten() for one in state.parameters()]) != 0
    assert 0 <= kept.sum() < 10
    assert kept.numel() > 300
    assert len(optimizer.state) == len(list(state.parameters()))


@pytest.mark.parametrize("prune", [0.5, 0.9])
def test_pruned_moments_do_not_kick_factors_without_a_gradient(prune):
    """LoRA's A has a gradient of 0 at a restart, so that Adam divides what is left of its moments by each other."""
    model, state, optimizer, chain = made(families.lora(), relora, lr=0.01, prune=prune)
    train(model, state, chain, optimizer, 3)
    moments = [optimizer.state[one] for one in state.parameters()]
    assert all(torch.equal(one["exp_avg"] != 0, one["exp_avg_sq"] != 0) for one in moments)
    before = [value.detach().clone() for value in state.parameters()]
    train(model, state, chain, optimizer, 1)
    steps = [(value - old).abs().max() for value, old in zip(state.parameters(), before, strict=True)]
    assert max(steps) < 0.1


def test_rac_lora_trains_the_factor_that_starts_at_zero():
    model, state, optimizer, chain = made(families.lora(frozen_a=True), rac_lora)
    before = {name: value.clone() for name, value in state.params().items() if name.endswith(".A")}
    train(model, state, chain, optimizer, 3)
    after = state.params()
    assert before
    assert not any(torch.equal(value, after[name]) for name, value in before.items())
    for spec in (families.lora(), families.lotr(), families.ssb()):
        with pytest.raises(SiteError, match=r"(one trained factor, which starts at zero|reads the host's weight)"):
            made(spec, rac_lora, rank=None if spec.name == "ssb" else 2)


def test_xgblora_trains_a_random_subset():
    model, state, optimizer, chain = made(families.lora(), xgblora, rank=1, sites=2)
    seen = []
    for _ in range(4):
        assert len(chain.chosen) == 2
        seen.append(chain.chosen)
        before = weights_of(model, state)
        trained = {name for name, value in state.params().items() if value.requires_grad}
        assert trained == {f"{path.removeprefix('layers.')}.{name}" for path in chain.chosen for name in "AB"}
        chosen = chain.chosen
        train(model, state, chain, optimizer, 3)
        after = weights_of(model, state)
        assert {path for path in before if np.any(before[path] != after[path])} == set(chosen)
    assert len({tuple(paths) for paths in seen}) > 1
    assert len(chain.links) == 4
    assert chain.links.rank_bound(PATH) == 4


def test_xgblora_refuses_what_it_cannot_choose_from():
    with pytest.raises(SiteError, match="expected an adapter of rank 1, got rank 2"):
        made(families.lora(), xgblora, sites=2)
    with pytest.raises(SiteError, match=r"where .* and .* share"):
        made(families.lotr(), xgblora, rank=1, sites=2)
    with pytest.raises(SiteError, match="expected a number of weights from 1 to 6, got 9"):
        made(families.lora(), xgblora, rank=1, sites=9)


@pytest.mark.parametrize("method", [cola, relora, rac_lora])
def test_every_method_refuses_what_is_no_adapter(method):
    with pytest.raises(SiteError, match="expected an attached adapter, got int"):
        method(3, None, 4)


def test_a_chain_learns_what_one_link_cannot():
    """The target differs from the host by rank 8; a link has rank 1."""
    errors = {}
    for every in (40, 320):
        model = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False))
        torch.nn.init.zeros_(model[0].weight)
        target = torch.eye(8)
        state = attach(model, families.lora(), target_modules=["0"], rank=1, alpha=1, seed=0)
        optimizer = torch.optim.Adam(state.parameters(), lr=0.1)
        chain = cola(state, optimizer, every)
        for _ in range(320):
            optimizer.zero_grad()
            (model(torch.eye(8)) - target).square().sum().backward()
            optimizer.step()
            chain.step()
        errors[every] = float((model(torch.eye(8)) - target).square().sum().detach())
    assert errors[320] > 6.9  # the best of rank 1 leaves 7
    assert errors[40] < 0.5
