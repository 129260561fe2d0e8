"""One loop runs every plan: on numpy arrays, and on whatever a backend calls a value."""

import itertools
import re
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tnadapt import AdapterSpec, Site, families, grid, plan, trainable
from tnadapt._planning import Convolution, Labeled, NumpyBackend, equation_of, run
from tnadapt.testing import networks

TOKENS = 3


def operands_of(order, seed=0):
    random = np.random.default_rng(seed)
    shapes = [[order.size(mode) for mode in modes] for modes in order.inputs]
    return [Labeled(random.standard_normal(shape), modes) for shape, modes in zip(shapes, order.inputs, strict=True)]


def by_einsum(order, operands):
    """Contract the operands of every term at once, and add the terms up."""
    named = dict(zip(order.operands, operands, strict=True))
    x = ["(x)"] if "(x)" in named else []
    total = 0
    for term in order.network.terms:
        parts = [named[name] for name in (*x, *term.nodes)]
        equation = equation_of([part.modes for part in parts], order.answer)
        total = total + term.sign * np.einsum(equation, *(part.array for part in parts), optimize="greedy")
    return total


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
    """Keeps what it is asked for, what it is asked to order, and the signs of what it is asked to add."""

    def __init__(self):
        self.steps, self.ordered_modes, self.signs = [], [], []

    def contract(self, left, right, kept, wanted):
        self.steps.append((left.modes, right.modes, kept, wanted))
        return super().contract(left, right, kept, wanted)

    def ordered(self, value, modes):
        self.ordered_modes.append((value.modes, modes))
        return super().ordered(value, modes)

    def add(self, values):
        self.signs.append([sign for sign, _ in values])
        return super().add(values)


@pytest.mark.parametrize("ask", ["apply", "delta"])
@settings(max_examples=20)
@given(network=networks())
def test_a_backend_is_asked_for_every_step_once_and_for_the_order_of_the_answer_at_the_end_of_each_term(ask, network):
    order, backend = plan(network, ask, tokens=TOKENS), Recording()
    run(order, operands_of(order), backend)
    ends = {number for _, number in order.results}
    wanted = [order.answer if number in ends else () for number, _ in enumerate(order.steps, len(order.operands))]
    held = {number: modes for number, modes in enumerate(wanted, len(order.operands)) if modes}

    def modes_of(number):
        return held.get(number, order.modes(number))

    assert backend.steps == [
        (modes_of(step.left), modes_of(step.right), step.modes, last)
        for step, last in zip(order.steps, wanted, strict=True)
    ]
    assert backend.ordered_modes == [(modes_of(number), order.answer) for _, number in order.results]
    signs = [sign for sign, _ in order.results]
    assert backend.signs == ([] if signs == [1] else [signs])  # a single term is the answer as it is


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


@pytest.mark.parametrize("size", [1, 4, 5])
@pytest.mark.parametrize("conjugated", ["", "left", "right"])
def test_a_numpy_convolution_adds_up_what_the_protocol_says(conjugated, size):
    """The entries at i and at j go to i + j, to j - i or to i - j; modes that are not kept are summed."""
    how = Convolution(0, "a", "b", "c", size, 0.5, conjugated)
    random = np.random.default_rng(0)
    left, right = random.standard_normal((2, size, 3)), random.standard_normal((size, 3, 2))
    wanted = np.zeros((2, size, 2))
    for i, j in itertools.product(range(size), repeat=2):
        place = {"": i + j, "left": j - i, "right": i - j}[conjugated] % size
        wanted[:, place] += 0.5 * left[:, i] @ right[j]
    values = Labeled(left, ("x", "a", "s")), Labeled(right, ("b", "s", "y"))
    made = NumpyBackend().ordered(NumpyBackend().convolve(*values, ("y", "c", "x"), how), ("x", "c", "y"))
    np.testing.assert_allclose(made.array, wanted, rtol=0, atol=1e-12)


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


@pytest.mark.parametrize("terms", [["- A"], ["- A", "B"], ["B", "- A"], ["B", "- A", "B"]], ids=str)
def test_a_term_is_added_with_its_sign_and_the_operands_stay_as_they_are(terms):
    factors = {"A": trainable("in out"), "B": trainable("out in")}
    used = {name: factors[name] for name in "AB" if any(name in term for term in terms)}
    spec = AdapterSpec(name="own", weight="out in", factors=used, terms=terms, start="free")
    order = plan(spec.bind([Site("w", (3, 2))]).networks[0], "delta")
    numbers = {"A": 2.0, "B": 5.0}
    shapes = [[order.size(mode) for mode in modes] for modes in order.inputs]
    values = [
        Labeled(np.full(shape, numbers[name]), modes)
        for name, shape, modes in zip(order.operands, shapes, order.inputs, strict=True)
    ]
    for value in values:
        value.array.flags.writeable = False
    wanted = sum(-numbers["A"] if "-" in term else numbers["B"] for term in terms)
    assert run(order, values, NumpyBackend()).array.tolist() == np.full((3, 2), wanted).tolist()


def test_a_network_of_one_factor_has_no_step_and_an_answer():
    spec = AdapterSpec(name="full", weight="out in", factors={"A": trainable("in out")}, start="free")
    order = plan(spec.bind([Site("w", (3, 2))]).networks[0], "delta")
    array = np.arange(6.0).reshape(2, 3)
    backend = Recording()
    assert order.steps == ()
    assert run(order, [Labeled(array, ("in", "out"))], backend).array.tolist() == array.T.tolist()
    assert backend.steps == []
