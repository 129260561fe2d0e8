"""Factors that the user changes with the tools of torch: they are used as they are, or an error names them."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.torch import hosts
from tnadapt import SiteError, families
from tnadapt_torch import attach

REFUSED = r"^factor: expected 'A' to be stored or computed by torch.nn.utils.parametrize, got one that was pruned"


def lora(spec=None):
    model = hosts.sequential()
    state = attach(model, spec or families.lora(), target_modules=["0"], rank=2, seed=0)
    return model, hosts.wake(state)


@pytest.mark.parametrize("spec", [families.lora(), families.lotr()], ids=lambda spec: spec.name)
def test_a_parametrized_factor_is_used_and_trained(spec, tmp_path):
    model, state = lora(spec)
    x = hosts.normal(4, 5)
    before = model(x)
    parametrizations.orthogonal(state.factors, "A")
    y = model(x)
    assert not torch.allclose(y, before)
    hosts.close(nn.functional.linear(x, model[0].weight + state.delta("0"), model[0].bias), model[0](x))
    y.sum().backward()
    assert state.factors.parametrizations.A.original.grad.any()
    state.save(tmp_path / "adapter.safetensors")
    parametrize.remove_parametrizations(state.factors, "A")
    hosts.close(model(x), y)


@pytest.mark.parametrize(
    "change", [lambda owner: prune.l1_unstructured(owner, "A", 0.5), lambda owner: delattr(owner, "A")]
)
def test_a_factor_that_nobody_computes_is_refused(change):
    model, state = lora()
    change(state.factors)
    with pytest.raises(SiteError, match=REFUSED):
        model(hosts.normal(4, 5))
