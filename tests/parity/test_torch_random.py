"""PyTorch agrees with the numpy reference on random specs."""

import pytest

pytest.importorskip("torch")

from itertools import product

import numpy as np
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.parity import sides
from tests.thorough import IS_THOROUGH
from tnadapt import plan
from tnadapt.binding import BUCKETS, equation_of
from tnadapt.testing import adapters
from tnadapt_torch._run.lower import lower_apply

# The strategy also draws weights of three axes, which no linear layer has. Examples are few, since each one attaches an
# adapter and generates code for it.
few = settings(
    max_examples=40 if IS_THOROUGH else 20, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)


def check(adapter):
    assume(len(adapter.spec.axes) == 2)
    assume("expert" not in adapter.spec.site_modes)  # attach finds layers and kinds
    assume(all(site.block is None for site in adapter.sites))  # and adapts whole weights here
    assume(sum(value.size for value in sides.moved(adapter).values()) <= 2000)
    params = sides.moved(adapter)
    wanted = sides.by_reference(adapter, params)
    sides.assert_same(sides.by_torch(adapter, params, torch.float64), wanted, 1e-10)


@few
@given(adapter=adapters())
def test_a_random_spec_agrees(adapter):
    check(adapter)


@few
@given(adapter=adapters(start="centered"))
def test_a_random_centered_spec_agrees(adapter):
    check(adapter)


@few
@given(adapter=adapters(), length=st.sampled_from([0, 1, 3, 17]))
def test_the_code_for_every_bucket_of_tokens_gives_the_same_results(adapter, length):
    """Code made for one number of tokens is correct for any; outputs and all gradients agree with torch.einsum."""
    assume(len(adapter.spec.axes) == 2)
    random = np.random.default_rng(0)
    for network in dict.fromkeys(adapter.networks):
        order = plan(network)
        shapes = [[network.sizes[mode] for mode in modes] for modes in order.inputs[1:]]
        factors = [torch.tensor(random.standard_normal(shape), requires_grad=True) for shape in shapes]
        outer, inner = network.weight_shape
        x = torch.tensor(random.standard_normal((length, inner)), requires_grad=True)
        y, pull = (torch.tensor(random.standard_normal((length, outer))) for _ in range(2))
        split = x.reshape(length, *(network.sizes[mode] for mode in network.in_modes))
        named, tokens = (
            dict(zip(network.nodes, zip(factors, order.inputs[1:], strict=True), strict=True)),
            order.inputs[0],
        )
        wanted = y
        for term in network.terms:
            parts = [named[name] for name in term.nodes]
            equation = equation_of([tokens, *(own for _, own in parts)], order.answer)
            update = torch.einsum(equation, split, *(factor for factor, _ in parts))
            wanted = wanted + term.sign * network.scale * update.reshape(length, outer)
        wanted_grads = torch.autograd.grad(wanted, (x, *factors), pull)
        asked = [*product(BUCKETS, [(False, False), (True, False), (True, True)], [False]), (1024, (True, True), True)]
        for bucket, needs, compiled in asked:
            code = lower_apply(network, bucket, training=needs[0], x_needs_grad=needs[1], compiled=compiled)
            found = code(y, x, *factors)
            found_grads = torch.autograd.grad(found, (x, *factors), pull)
            for one, two in zip((found, *found_grads), (wanted, *wanted_grads), strict=True):
                largest = float(two.detach().abs().max()) if two.numel() else 0.0
                torch.testing.assert_close(one, two, rtol=0, atol=1e-10 * max(largest, 1.0))
