"""Initializers: what each one is, as a value and as text."""

import math

import pytest

from tnadapt import initializers
from tnadapt.initializers import Initializer

MADE = {
    "zeros": (initializers.zeros(), "zeros"),
    "ones": (initializers.ones(), "ones"),
    "constant": (initializers.constant(0.1), "constant(value=0.1)"),
    "normal": (initializers.normal(0.5, fan="in r"), "normal(std=0.5 / sqrt(in*r))"),
    "uniform": (initializers.uniform(2), "uniform(bound=2)"),
    "kaiming_uniform": (initializers.kaiming_uniform("in"), "uniform(bound=1 / sqrt(in))"),
    "kaiming_normal": (initializers.kaiming_normal("in"), "normal(std=0.57735 / sqrt(in))"),
    "orthogonal": (initializers.orthogonal(), "orthogonal()"),
    "orthogonal, gain": (initializers.orthogonal(2), "orthogonal(gain=2)"),
    "identity": (initializers.identity(), "identity()"),
    "cyclic": (initializers.cyclic(), "cyclic()"),
    "controlled_z": (initializers.controlled_z(), "controlled_z()"),
    "svd": (initializers.svd(0.5), "svd(power=0.5)"),
    "tt_svd": (initializers.tt_svd(), "tt_svd()"),
    "hosvd_core": (initializers.hosvd_core(), "hosvd_core()"),
    "t_svd": (initializers.t_svd(), "t_svd()"),
    "tensor_cur": (initializers.tensor_cur(), "tensor_cur()"),
}
READ = {"svd", "tt_svd", "hosvd_core", "t_svd", "tensor_cur"}


@pytest.mark.parametrize("name", MADE)
def test_an_initializer_is_valid_and_prints_itself(name):
    made, text = MADE[name]
    assert made.faults() == []
    assert str(made) == text
    assert made.is_zero == (name == "zeros")
    assert made.is_read == (name in READ)
    assert made.is_redrawn == (name not in READ and made.kind != "orthogonal")


def test_every_initializer_is_in_the_table():
    rules = {"Initializer", "Scale", "over_rank", "over_sqrt_rank", "raw"}
    assert {name.partition(",")[0] for name in MADE} == set(initializers.__all__) - rules


def test_kaiming_bounds_follow_their_slope():
    assert initializers.kaiming_uniform("in", slope=0).amount == math.sqrt(6)
    assert initializers.kaiming_normal("in", slope=0).amount == math.sqrt(2)


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (Initializer("cauchy", 1.0), "'cauchy'"),
        (Initializer("normal", 1e31), "1e+31"),
        (Initializer("normal", "1"), "'1'"),
        (Initializer("svd", 1.0, power=2), "got 2"),
        (Initializer("svd", 1.0, power=True), "got True"),
    ],
)
def test_an_invalid_initializer_says_what_is_wrong(made, word):
    (fault,) = made.faults()
    assert word in fault
