"""The scale: its value at a rank, its text, its faults."""

import numpy as np
import pytest

import tnadapt
from tnadapt import families, grid, step_size
from tnadapt.initializers import LORA_STEP, Scale, over_rank, over_sqrt_rank, raw, unit


@pytest.mark.parametrize(
    ("scale", "value", "text"),
    [
        (over_rank("r", alpha=16), 4.0, "16 / r"),
        (over_rank("p"), 0.25, "1 / p"),
        (over_sqrt_rank("r", alpha=16), 8.0, "16 / sqrt(r)"),
        (over_sqrt_rank("p"), 0.5, "1 / sqrt(p)"),
        (raw(0.5), 0.5, "0.5"),
        (raw(-3), -3.0, "-3"),
        (raw(), 1.0, "1"),
        (unit(), 1.0, "1 x unit"),
        (unit(1.5), 1.5, "1.5 x unit"),
    ],
)
def test_a_scale_at_rank_4(scale, value, text):
    assert scale.at(4) == value
    assert isinstance(scale.at(4), float)
    assert str(scale) == text
    assert scale.faults() == []


def test_the_step_of_lora_is_the_output_of_rank_8_with_alpha_8():
    assert LORA_STEP == tnadapt.LORA_STEP == pytest.approx(1.633, abs=1e-3)
    for width in (64, 4096):
        sites = grid(layers=1, kinds={"q": (width, width)})
        (one,) = step_size(families.lora(alpha=8).bind(sites, rank=8)).values()
        assert one.output / one.coherence == pytest.approx(LORA_STEP)
        (other,) = step_size(families.lotr().bind(sites, rank=8, scale=unit(LORA_STEP))).values()
        assert other.of_lora / other.coherence == pytest.approx(1)


def test_unit_divides_by_the_gain():
    assert unit(3).at(1, 2.0) == 1.5


def test_a_scale_names_its_bond():
    assert [scale.bond for scale in (over_rank("p"), over_sqrt_rank("q"), raw())] == ["p", "q", ""]


@pytest.mark.parametrize("alpha", [-2, 1e30, -(10**30), 5e-324])
def test_any_finite_alpha_but_0_is_valid(alpha):
    assert raw(alpha).faults() == []


@pytest.mark.parametrize(
    ("alpha", "word"),
    [
        (float("nan"), "got nan"),
        (float("inf"), "got inf"),
        ("16", "got '16'"),
        (True, "got True"),
        (10**400, "got 1000"),
        (1e31, "got 1e+31"),
        (-1e31, "got -1e+31"),
        (0, "got 0"),
    ],
)
@pytest.mark.parametrize("rule", ["raw", "over_rank", "over_sqrt_rank"])
def test_an_invalid_alpha_is_the_one_fault(rule, alpha, word):
    (fault,) = Scale(rule, alpha, "r").faults()
    assert fault.startswith("scale: ")
    assert word in fault


def test_a_scale_of_no_number_is_a_text():
    """As a bond given to a rule that takes none: the error that names it prints the scale."""
    assert [str(scale) for scale in (unit("r"), raw(None))] == ["r x unit", "None"]


@pytest.mark.parametrize("number", [np.float32(1.5), np.float64(1.5), np.int64(3), np.float16(1.5)])
def test_a_number_of_numpy_is_the_python_number(number):
    for scale in (unit(number), raw(number), over_rank("r", alpha=number), over_sqrt_rank("r", alpha=number)):
        assert scale.faults() == []
        assert type(scale.alpha) is (int if isinstance(number, np.integer) else float)
        assert scale.alpha == number
        assert "np." not in repr(scale)


@pytest.mark.parametrize("other", [np.bool_(1), np.array([1.0]), np.complex64(1), "1"])
def test_a_value_of_numpy_that_is_no_number_is_a_fault(other):
    assert [fault.partition(", got")[0] for fault in unit(other).faults()] == [
        "scale: expected a finite number as alpha"
    ]


def test_unit_is_told_from_the_other_rules_by_one_property():
    assert [scale.is_unit for scale in (unit(), raw(), over_rank("r"), over_sqrt_rank("r"))] == [
        True,
        False,
        False,
        False,
    ]


def test_an_unknown_rule_is_a_fault_beside_that_of_alpha():
    assert [word in fault for word, fault in zip(["'twice'"], Scale("twice", 1.0).faults(), strict=True)] == [True]
    assert len(Scale("twice", float("nan")).faults()) == 2
