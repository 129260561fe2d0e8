"""One loop runs every plan: on numpy arrays, and on whatever a backend calls a value."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnadapt import AdapterSpec, Site, families, grid, plan, trainable
from tnadapt._planning import Labeled, NumpyBackend, run
from tnadapt.testing import networks

TOKENS = 3


def operands_of(order, seed=0):
    random = np.random.default_rng(seed)
    shapes = [[order.size(mode) for mode in modes] for modes in order.inputs]
    return [Labeled(random.standard_normal(shape), modes) for shape, modes in zip(shapes, order.inputs, strict=True)]


def by_einsum(order, operands):
    return np.einsum(order.equation(), *(one.array for one in operands), optimize="greedy")


@pytest.mark.parametrize("ask", ["apply", "delta"])
@given(network=networks(), seed=st.integers(0, 99))
def test_a_plan_gives_what_its_equation_says(ask, network, seed):
    order = plan(network, ask, tokens=TOKENS)
    operands = operands_of(order, seed)
    found = run(order, operands, NumpyBackend())
    assert found.modes == order.answer
    np.testing.assert_allclose(found.array, by_einsum(order, operands), rtol=1e-10, atol=1e-10)


class Turning(NumpyBackend):
    """Leaves every result with its axes the other way round, as a backend may."""

    def contract(self, left, right, kept, wanted):
        made = super().contract(left, right, kept, wanted)
        return Labeled(made.array.T, made.modes[::-1])


@pytest.mark.parametrize("family", [families.lotr(), families.tera(out_order=2, in_order=1), families.loha()])
def test_a_backend_chooses_the_order_of_the_axes(family):
    network = family.bind(grid(layers=2, kinds={"q": (6, 4)}), rank=2).networks[0]
    order = plan(network, tokens=TOKENS)
    operands = operands_of(order)
    turned = [Labeled(one.array.T, one.modes[::-1]) for one in operands]
    found = run(order, turned, Turning())
    assert found.modes == order.answer
    np.testing.assert_allclose(found.array, by_einsum(order, operands), atol=1e-12)


@dataclass(frozen=True)
class Term:
    """A value that is no array: a formula."""

    text: str


class Writing:
    """Writes down what it is asked for."""

    def __init__(self):
        self.asked = []

    def contract(self, left, right, kept, wanted):
        self.asked.append((kept, wanted))
        return Term(f"({left.text} {right.text})")

    def ordered(self, value, modes):
        return Term(f"{value.text} as {' '.join(modes)}")


def test_every_step_is_asked_for_once_and_the_last_knows_the_answer():
    network = families.lotr().bind(grid(layers=2, kinds={"q": (6, 4)}), rank=2).networks[0]
    order, backend = plan(network, tokens=2048), Writing()
    found = run(order, [Term(name) for name in order.operands], backend)
    assert found.text.endswith(" as (token) out")
    assert sorted(re.findall(r"\w", found.text.partition(" as ")[0])) == ["A", "B", "G", "x"]
    assert [kept for kept, _ in backend.asked] == [step.modes for step in order.steps]
    assert [wanted for _, wanted in backend.asked] == [()] * (len(order.steps) - 1) + [order.answer]


def test_a_network_of_one_factor_has_no_step_and_an_answer():
    spec = AdapterSpec(name="full", weight="out in", factors={"A": trainable("in out")}, identity_at_start=False)
    order = plan(spec.bind([Site("w", (3, 2))]).networks[0], "delta")
    array = np.arange(6.0).reshape(2, 3)
    assert order.steps == ()
    assert run(order, [Labeled(array, ("in", "out"))], NumpyBackend()).array.tolist() == array.T.tolist()
