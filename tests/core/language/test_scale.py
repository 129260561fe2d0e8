"""The scale: its value at a rank, its text, its faults."""

import pytest

from tnadapt.initializers import Scale, over_rank, over_sqrt_rank, raw, unit


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


def test_an_unknown_rule_is_a_fault_beside_that_of_alpha():
    assert [word in fault for word, fault in zip(["'twice'"], Scale("twice", 1.0).faults(), strict=True)] == [True]
    assert len(Scale("twice", float("nan")).faults()) == 2
