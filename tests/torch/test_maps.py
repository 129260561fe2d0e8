"""Maps on factors in torch against the maps of the core."""

import numpy as np
import pytest
import torch

import tnadapt
from tnadapt import SpecError, binding, families
from tnadapt_torch import attach
from tnadapt_torch._run.maps import map_factor

SHAPES = {"": (3,), "rotation": (3,), "householder": (3,), "cayley": (3, 3)}


@pytest.mark.parametrize("size", [0.1, 2.0])
@pytest.mark.parametrize("lead", [(), (2,), (2, 4)])
@pytest.mark.parametrize("name", SHAPES)
def test_a_node_and_its_gradient_are_those_of_the_core(name, lead, size):
    random = np.random.default_rng(0)
    held = size * random.standard_normal(lead + SHAPES[name])
    given = torch.tensor(held, requires_grad=True)
    node = map_factor(name, given)
    np.testing.assert_allclose(node.detach(), binding.map_factor(name, held), rtol=1e-10, atol=1e-12)
    weight = random.standard_normal(tuple(node.shape))
    (found,) = torch.autograd.grad((torch.tensor(weight) * node).sum(), given)
    np.testing.assert_allclose(found, binding.pull_back(name, held, weight), rtol=1e-10, atol=1e-12)


def test_a_zero_vector_reflects_nothing_and_has_no_gradient():
    held = torch.zeros(3, requires_grad=True)
    node = map_factor("householder", held)
    assert torch.equal(node, torch.eye(3))
    assert torch.equal(torch.autograd.grad(node.sum(), held)[0], torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SHAPES)
def test_a_node_in_half_precision_is_that_of_float32_rounded_once(name, dtype):
    held = torch.randn(2, *SHAPES[name], generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(map_factor(name, held), map_factor(name, held.float()).to(dtype))


def test_an_unknown_map_is_refused():
    with pytest.raises(SpecError, match="no_such_map"):
        map_factor("no_such_map", torch.eye(2))


def test_an_attached_factor_is_mapped():
    host = torch.nn.Sequential(torch.nn.Linear(4, 6, bias=False))
    state = attach(host, families.householder(), target_modules=["0"], rank=3, seed=0)
    with torch.no_grad():
        for value in state.parameters():
            value.normal_(generator=torch.Generator().manual_seed(0))
    wanted = tnadapt.delta(state.adapter, {name: value.detach().numpy() for name, value in state.params().items()}, "0")
    x = torch.ones(2, 4)
    found = (host(x) - x @ host[0].weight.T).detach()
    np.testing.assert_allclose(found, x.numpy() @ wanted.T, rtol=0, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(state.delta("0").detach(), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
