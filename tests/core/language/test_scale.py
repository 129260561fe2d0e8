"""The scale: its value at a rank, its text, its faults."""

import pytest

from tnadapt.initializers import Scale, over_rank, over_sqrt_rank, raw


@pytest.mark.parametrize(
    ("scale", "value", "text"),
    [
        (over_rank("r", alpha=16), 4.0, "16 / r"),
        (over_sqrt_rank("r", alpha=16), 8.0, "16 / sqrt(r)"),
        (raw(0.5), 0.5, "0.5"),
        (raw(), 1.0, "1"),
    ],
)
def test_a_scale_at_rank_4(scale, value, text):
    assert scale.at(4) == value
    assert isinstance(scale.at(4), float)
    assert str(scale) == text
    assert scale.faults() == []


@pytest.mark.parametrize(
    ("scale", "word"),
    [
        (Scale("twice", 1.0), "got 'twice'"),
        (Scale("raw", float("nan")), "got nan"),
        (Scale("raw", float("inf")), "got inf"),
        (Scale("raw", True), "got True"),
        (Scale("raw", 1e31), "got 1e+31"),
    ],
)
def test_an_invalid_scale_says_what_is_wrong(scale, word):
    (fault,) = scale.faults()
    assert fault.startswith("scale: ")
    assert word in fault
