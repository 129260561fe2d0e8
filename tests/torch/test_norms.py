"""The norms of factors and of dW, compared with dense updates."""

import math

import opt_einsum
import pytest
import torch

from tests.table import FAMILIES, required_of
from tests.torch import hosts
from tnadapt import AdapterSpec, families, grid, normal, trainable, zeros
from tnadapt_torch import attach
from tnadapt_torch._state.norms import contraction


def check(state):
    norms = state.norms()
    dense = math.sqrt(sum(state.delta(path).double().square().sum().item() for path in state.updates))
    assert norms.pop("dW") == pytest.approx(dense, rel=1e-6, abs=1e-12)
    factors = state.adapter.spec.factors
    assert list(norms) == [name for name, factor in factors.items() if factor.trainable]
    for name, norm in norms.items():
        parts = [value for key, value in state.params().items() if key.split(".")[-1] == name]
        assert norm == pytest.approx(torch.cat([part.flatten() for part in parts]).norm().item(), rel=1e-6)


@pytest.mark.parametrize("family", hosts.FAMILIES)
def test_norms_equal_those_of_the_dense_updates(family):
    state = hosts.adapt(hosts.toy(), family, awake=False)
    assert state.norms()["dW"] == 0.0
    check(hosts.wake(state))


def test_norms_of_a_stack_with_missing_sites():
    model = hosts.toy(layers=3)
    paths = ["layers.0.self_attn.q_proj", "layers.2.self_attn.q_proj", "layers.2.self_attn.o_proj"]
    state = attach(model, families.lorta(), target_modules=paths, rank=2, sizes={"head": 4}, seed=0)
    assert state.adapter.groups[0].places is not None
    check(hosts.wake(state))


def test_norms_of_a_centered_spec():
    state = attach(hosts.toy(), families.quanta(order=2), target_modules=["q_proj"], seed=0)
    assert state.norms()["dW"] == 0.0
    check(hosts.wake(state))


LARGE = {  # one term, which is a product of small arrays
    name: case for name, case in FAMILIES.items() if case.is_linear and len(case.spec.sum) == 1 and not case.spec.hosts
}


@pytest.mark.parametrize("name", LARGE)
def test_no_step_of_the_norm_is_as_large_as_a_dense_update(name):
    """Checked from shapes alone, for 32 layers of two weights of 4096 x 4096."""
    case = LARGE[name]
    sizes = dict.fromkeys(required_of(case.spec), 32)
    sites = grid(layers=32, kinds={"q": (4096, 4096), "v": (4096, 4096)})
    network = case.spec.bind(sites, rank=case.rank, sizes=sizes, overparametrized=True).groups[0].network
    shapes = [tuple(network.sizes[mode] for mode in node.modes) for node in network.nodes.values()] * 2
    _, told = opt_einsum.contract_path(contraction(network)[0], *shapes, shapes=True)
    assert told.largest_intermediate < 4096**2 / 16


def test_norms_compute_no_dense_update(monkeypatch):
    state = hosts.adapt(hosts.toy(), "lora")
    monkeypatch.setattr("tnadapt_torch._run.site.SiteUpdate.delta", None)
    assert state.norms()["dW"] > 0


def test_norms_of_an_update_that_all_sites_share():
    factors = {"B": trainable("out r", init=zeros()), "A": trainable("r in", init=normal())}
    spec = AdapterSpec(name="one", weight="out in", over="layer", factors=factors, scale=1.0)
    state = attach(hosts.toy(), spec, target_modules=["q_proj"], rank=2)
    check(hosts.wake(state))
