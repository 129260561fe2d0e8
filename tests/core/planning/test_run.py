"""One loop runs every plan: on numpy arrays, and on whatever a backend calls a value."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
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


class Turning(NumpyBackend):
    """Leaves every result with its axes the other way round, as a backend may."""

    def contract(self, left, right, kept, wanted):
        made = super().contract(left, right, kept, wanted)
        return Labeled(made.array.T, made.modes[::-1])


def turned(operands):
    return [Labeled(one.array.T, one.modes[::-1]) for one in operands]


@pytest.mark.parametrize("ask", ["apply", "delta"])
@given(network=networks(), seed=st.integers(0, 99))
def test_a_plan_gives_what_its_equation_says_whatever_the_order_of_the_axes(ask, network, seed):
    order = plan(network, ask, tokens=TOKENS)
    operands = operands_of(order, seed)
    wanted = by_einsum(order, operands)
    for given_operands, backend in ((operands, NumpyBackend()), (turned(operands), Turning())):
        found = run(order, given_operands, backend)
        assert found.modes == order.answer
        np.testing.assert_allclose(found.array, wanted, rtol=1e-10, atol=1e-10)


class Recording(NumpyBackend):
    """Keeps what it is asked for, and what it is asked to order."""

    def __init__(self):
        self.steps, self.ordered_modes = [], []

    def contract(self, left, right, kept, wanted):
        self.steps.append((left.modes, right.modes, kept, wanted))
        return super().contract(left, right, kept, wanted)

    def ordered(self, value, modes):
        self.ordered_modes.append((value.modes, modes))
        return super().ordered(value, modes)


@pytest.mark.parametrize("ask", ["apply", "delta"])
@settings(max_examples=20)
@given(network=networks())
def test_a_backend_is_asked_for_every_step_once_and_for_the_order_of_the_answer_at_the_last(ask, network):
    order, backend = plan(network, ask, tokens=TOKENS), Recording()
    run(order, operands_of(order), backend)
    wanted = [()] * (len(order.steps) - 1) + [order.answer]
    assert backend.steps == [
        (order.modes(step.left), order.modes(step.right), step.modes, last)
        for step, last in zip(order.steps, wanted, strict=True)
    ]
    assert backend.ordered_modes == [(order.answer, order.answer)]


def test_a_numpy_step_has_the_wanted_order_or_that_of_the_plan():
    left, right = Labeled(np.ones((2, 3)), ("a", "b")), Labeled(np.ones((3, 4)), ("b", "c"))
    backend = NumpyBackend()
    for wanted, modes, shape in (((), ("a", "c"), (2, 4)), (("c", "a"), ("c", "a"), (4, 2))):
        made = backend.contract(left, right, ("a", "c"), wanted)
        assert (made.modes, made.array.shape) == (modes, shape)
        assert (made.array == 3).all()
    assert backend.ordered(left, ("a", "b")) is left


def test_a_numpy_value_is_ordered_by_the_names_of_its_axes():
    value = Labeled(np.ones((2, 3, 4)), ("a", "b", "c"))
    made = NumpyBackend().ordered(value, ("c", "a", "b"))
    assert (made.modes, made.array.shape) == (("c", "a", "b"), (4, 2, 3))


@dataclass(frozen=True)
class Term:
    """A value that is no array: a formula."""

    text: str


class Writing:
    """Writes down what it is asked for."""

    def contract(self, left, right, kept, wanted):
        return Term(f"({left.text} {right.text})")

    def ordered(self, value, modes):
        return Term(f"{value.text} as {' '.join(modes)}")


def test_a_value_need_not_be_an_array():
    network = families.lotr().bind(grid(layers=2, kinds={"q": (6, 4)}), rank=2).networks[0]
    order = plan(network, tokens=2048)
    found = run(order, [Term(name) for name in order.operands], Writing())
    assert found.text.endswith(" as (token) out")
    assert sorted(re.findall(r"\w", found.text.partition(" as ")[0])) == ["A", "B", "G", "x"]


def test_a_network_of_one_factor_has_no_step_and_an_answer():
    spec = AdapterSpec(name="full", weight="out in", factors={"A": trainable("in out")}, start="free")
    order = plan(spec.bind([Site("w", (3, 2))]).networks[0], "delta")
    array = np.arange(6.0).reshape(2, 3)
    backend = Recording()
    assert order.steps == ()
    assert run(order, [Labeled(array, ("in", "out"))], backend).array.tolist() == array.T.tolist()
    assert backend.steps == []
