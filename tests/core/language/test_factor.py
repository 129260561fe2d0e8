"""Factors: what params hold of them, and their text."""

import pytest

from tnadapt import frozen, normal, trainable, zeros
from tnadapt.initializers import ones, uniform


@pytest.mark.parametrize(
    ("factor", "held", "text"),
    [
        (trainable("out p"), ("out", "p"), 'trainable "out p" normal(std=1)'),
        (frozen("r in", init=ones()), ("r", "in"), 'frozen "r in" ones'),
        (trainable("", init=zeros()), (), 'trainable "" zeros'),
        (trainable("a b", map="rotation"), (), 'trainable "a b" rotation of normal(std=1)'),
        (trainable("s a b", map="rotation"), ("s",), 'trainable "s a b" rotation of normal(std=1)'),
        (trainable("s a b", map="householder"), ("s", "a"), 'trainable "s a b" householder of normal(std=1)'),
        (trainable("s a b", map="cayley"), ("s", "a", "b"), 'trainable "s a b" cayley of normal(std=1)'),
    ],
)
def test_what_params_hold_and_what_is_printed(factor, held, text):
    assert factor.held == held
    assert str(factor) == text


def test_a_map_never_makes_zero():
    assert trainable("a b", init=zeros()).is_zero
    assert frozen("a b", init=normal(0)).is_zero
    assert not trainable("a b", init=zeros(), map="rotation").is_zero
    assert not trainable("a b").is_zero


def test_the_default_is_normal():
    assert trainable("a b").init == frozen("a b").init == normal()
    assert (trainable("a b").trainable, frozen("a b").trainable) == (True, False)
    assert trainable("a b").map == ""


@pytest.mark.parametrize("make", [trainable, frozen])
def test_a_factor_has_the_modes_and_the_initializer_that_are_given(make):
    made = make("  site p\tq ", init=uniform(2))
    assert (made.modes, made.init) == (("site", "p", "q"), uniform(2))
    assert made == make("site p q", init=uniform(2))
    assert made != make("site q p", init=uniform(2))
