"""Initializers: what each one is, as a value and as text."""

import math
from dataclasses import replace

import pytest

from tnadapt import initializers
from tnadapt._language.initializer import AMOUNTS as AMOUNTS_OF_ALL
from tnadapt.initializers import Initializer, host

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
    "rotary": (initializers.rotary(), "rotary(base=10000)"),
    "svd": (Initializer("svd", 1.0, power=0.5), "svd(power=0.5)"),
    "svd, share": (Initializer("svd", 1.0, power=1, share=0.5), "svd(power=1, share=0.5)"),
    "tt_svd": (Initializer("tt_svd", 1.0), "tt_svd()"),
    "hosvd_core": (Initializer("hosvd_core", 1.0), "hosvd_core()"),
    "t_svd": (Initializer("t_svd", 1.0), "t_svd()"),
    "tensor_cur": (Initializer("tensor_cur", 1.0), "tensor_cur()"),
    "row_norms": (initializers.row_norms(), "row_norms()"),
    "host": (initializers.host(), "host()"),
    "host, mask": (initializers.host("mask"), "host_mask()"),
    "host, left": (initializers.host("left"), "host_left()"),
    "host, values": (initializers.host("values"), "host_values()"),
    "host, right": (initializers.host("right"), "host_right()"),
}
READ = {"svd", "tt_svd", "hosvd_core", "t_svd", "tensor_cur", "row_norms"}


@pytest.mark.parametrize("name", MADE)
def test_an_initializer_is_valid_and_prints_itself(name):
    made, text = MADE[name]
    assert made.faults() == []
    assert str(made) == text
    assert made.is_zero == (name == "zeros")
    assert made.is_read == (made.kind in READ)
    assert made.is_host == name.startswith("host")
    assert made.is_redrawn == (made.kind not in READ and not name.startswith("host") and made.kind != "orthogonal")


def test_every_initializer_is_in_the_table():
    others = {"LORA_STEP", "Initializer", "Scale", "over_rank", "over_sqrt_rank", "raw", "unit", "Decomposition"}
    starts = {"svd", "tt_svd", "hosvd", "t_svd", "tensor_cur"}  # which give several factors their values
    assert {name.partition(",")[0] for name in MADE} - READ == set(initializers.__all__) - others - starts - {
        "row_norms"
    }
    assert {made.kind for made, _ in MADE.values()} == {*AMOUNTS_OF_ALL}


def test_kaiming_bounds_follow_their_slope():
    assert initializers.kaiming_uniform("in", slope=0).amount == math.sqrt(6)
    assert initializers.kaiming_normal("in", slope=0).amount == math.sqrt(2)


def test_a_fan_is_a_list_of_modes():
    assert initializers.normal(fan=" in r ").fan == initializers.kaiming_uniform("in r").fan == ("in", "r")
    assert initializers.uniform().fan == ()


AMOUNTS = [("constant", "value"), ("normal", "std"), ("uniform", "bound"), ("orthogonal", "gain"), ("svd", "gain")]
NO_AMOUNTS = [float("nan"), float("inf"), 1.1e30, -1e31, 9e-31, -5e-324, True, "1", None, 10**400]


@pytest.mark.parametrize(("kind", "word"), AMOUNTS)
@pytest.mark.parametrize("amount", NO_AMOUNTS, ids=lambda amount: repr(amount)[:8])
def test_an_amount_that_float32_cannot_use_is_a_fault(kind, word, amount):
    (fault,) = Initializer(kind, amount).faults()
    assert fault.startswith(f"{kind}: ")
    assert word in fault
    assert repr(amount) in fault


@pytest.mark.parametrize(("kind", "word"), AMOUNTS)
@pytest.mark.parametrize("amount", [0, 0.0, 1, 1e30, -1e30, 1e-30, -1e-30])
def test_other_amounts_are_valid(kind, word, amount):
    assert Initializer(kind, amount).faults() == []
    assert Initializer(kind, amount).is_zero == (amount == 0)


@pytest.mark.parametrize("power", [0, 0.5, 1, 1.0])
def test_a_power_of_singular_values(power):
    assert Initializer("svd", 1.0, power=power).faults() == Initializer("t_svd", 1.0, power=power).faults() == []
    assert Initializer("svd", 1.0, share=power).faults() == []


@pytest.mark.parametrize("power", [2, -0.5, True, False, "1", float("nan")])
def test_any_other_power_is_a_fault(power):
    for word in ("power", "share"):
        (fault,) = Initializer("svd", 1.0, **{word: power}).faults()
        assert fault.startswith(f"svd: expected a {word} of the ")
        assert f"got {power!r}" in fault


def test_an_unknown_kind_is_the_one_fault():
    (fault,) = Initializer("cauchy", float("nan"), power=7).faults()
    assert "'cauchy'" in fault


@pytest.mark.parametrize(
    "words", [{"amount": 0.5}, {"amount": 0}, {"fan": ("in",)}, {"power": 1}, {"share": 0.5}], ids=str
)
def test_the_weight_of_the_host_takes_no_gain(words):
    found = replace(host(), **words)
    assert not host().faults()
    assert found.faults() == [f"host: expected the host's weight as it is, got {found}; multiply by a constant factor"]
