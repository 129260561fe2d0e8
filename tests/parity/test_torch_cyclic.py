"""PyTorch convolves in place of cyclic factors with the numbers and the gradients of the dense update."""

import pytest

pytest.importorskip("torch")

from itertools import product

import numpy as np
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.cyclic import can_convolve, convolving, cyclic_adapters
from tests.parity import sides
from tnadapt import Site, families, plan
from tnadapt.binding import BUCKETS
from tnadapt.testing import random_params
from tnadapt.testing._oracle import local
from tnadapt_torch._run.lower import lower_apply, lower_delta, nodes_read

few = settings(max_examples=40, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
NEEDS = [(False, False), (True, False), (True, True)]


@few
@given(adapter=cyclic_adapters(), length=st.sampled_from([0, 1, 3]), bucket=st.sampled_from(BUCKETS))
def test_the_code_of_a_random_spec_agrees_with_its_dense_update(adapter, length, bucket):
    """Outputs and all gradients, in float64, of code that convolves wherever that is possible."""
    network = adapter.networks[0]
    assume(can_convolve(network))
    random = np.random.default_rng(0)
    _, arrays = local(adapter, random_params(adapter, random), adapter.sites[0])
    factors = {name: torch.tensor(value, requires_grad=name != "T") for name, value in arrays.items()}
    outer, inner = network.weight_shape
    x = torch.tensor(random.standard_normal((length, inner)), requires_grad=True)
    y, pull = (torch.tensor(random.standard_normal((length, outer))) for _ in range(2))
    leaves = (x, *(value for value in factors.values() if value.requires_grad))
    wanted = y + x @ lower_delta(network)(*factors.values()).T
    wanted = (wanted, *torch.autograd.grad(wanted, leaves, pull))
    with convolving():
        for training, x_needs_grad in NEEDS:
            asked = {"training": training, "x_needs_grad": x_needs_grad}
            assert plan(network, tokens=bucket, **asked).convolutions
            read = nodes_read(network, bucket, **asked)
            assert [name for at, name in enumerate(network.nodes) if at not in read] == ["T"]
            found = lower_apply(network, bucket, **asked)(y, x, *(list(factors.values())[at] for at in read))
            found = (found, *torch.autograd.grad(found, leaves, pull))
            for one, two in zip(found, wanted, strict=True):
                largest = float(two.detach().abs().max()) if two.numel() else 0.0
                torch.testing.assert_close(one, two, rtol=0, atol=1e-10 * max(largest, 1.0))


@pytest.mark.parametrize(
    ("block", "blocks", "dtype"),
    [*product([1, 2, 3, 5, 8], [(1, 1), (3, 2)], [torch.float64]), (16, (2, 3), torch.float32)],
    ids=str,
)
def test_c3a_agrees(block, blocks, dtype):
    """An attached adapter, with blocks of odd and even sizes."""
    sites = (Site("q", (blocks[0] * block, blocks[1] * block)),)
    with convolving():
        adapter = families.c3a(alpha=2).bind(sites, sizes={"o2": block, "i2": block})
        assert plan(adapter.networks[0], tokens=1).convolutions
        sides.compare(families.c3a(alpha=2), sites, dtype, sizes={"o2": block, "i2": block})
