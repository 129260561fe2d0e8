"""PyTorch gives the numbers of the numpy reference for specs that nobody wrote."""

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import HealthCheck, assume, given, settings

from tests.laws.strategies import adapters
from tests.parity import sides

# The strategy also draws weights of three axes, which no linear layer has; and settings say how many are tried, since
# the oracle takes every gradient entry by entry.
few = settings(max_examples=40, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])


def check(adapter):
    assume(len(adapter.spec.axes) == 2)
    assume(sum(value.size for value in sides.moved(adapter).values()) <= 2000)
    params = sides.moved(adapter)
    wanted = sides.by_reference(adapter, params)
    sides.assert_same(sides.by_torch(adapter, params, torch.float64), wanted, 1e-10)


@few
@given(adapter=adapters())
def test_a_random_spec(adapter):
    check(adapter)


@few
@given(adapter=adapters(centered=True))
def test_a_random_centered_spec(adapter):
    check(adapter)
