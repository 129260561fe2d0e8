"""Arguments of a spec that are not of their kind are all reported at once, before anything else is checked."""

import re

import numpy as np
import pytest

from tnadapt import AdapterSpec, SpecError, raw, same, trainable, zeros
from tnadapt.sizes import required

FACTORS = {"A": trainable("out r", init=zeros()), "B": trainable("r in")}


def test_every_wrong_kind_is_reported_at_once():
    with pytest.raises(SpecError, match="not valid") as caught:
        AdapterSpec(
            name="own",
            weight=("out", "in"),
            over=3,
            factors={"A": "out r", "B": same},
            terms="A B",
            scale=raw,
            sizes=[],
            start=True,
        )
    words = [fault.partition(":")[0] for fault in caught.value.faults]
    assert words == ["weight", "over", "factor 'A'", "factor 'B'", "scale", "start", "terms", "sizes"]


@pytest.mark.parametrize(
    ("rule", "told"),
    [(2.0, "2.0"), (True, "True"), ("in", "'in'"), (None, "None"), (required, "the function required")],
)
def test_a_rule_for_a_size_that_is_none_is_named_with_its_mode(rule, told):
    with pytest.raises(SpecError, match=f"sizes: expected a rule or a number for 'r', got {told}; write like"):
        AdapterSpec(name="own", weight="out in", factors=FACTORS, sizes={"r": rule})


@pytest.mark.parametrize("scale", [2, 2.0, 0.5, np.float32(0.5), np.float64(2.0), np.int64(2)])
def test_a_number_is_a_scale(scale):
    spec = AdapterSpec(name="own", weight="out in", factors=FACTORS, scale=scale)
    assert spec.scale == raw(scale)


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("unit", "unit()"),
        ("unit:1.6", "unit(1.6)"),
        ("raw", "raw()"),
        ("2", "2.0"),
        ("over_sqrt_rank", 'over_sqrt_rank("r")'),
        ("over_rank", 'over_rank("r")'),
        ("unit:x", 'over_rank("r")'),
        ("inf", 'over_rank("r")'),
    ],
)
def test_a_scale_as_text_is_told_what_to_write(text, call):
    """The command takes some of these texts; in Python a scale is a call or a number."""
    told = re.escape(f"scale: expected a Scale or a number, got {text!r}; write scale={call}")
    with pytest.raises(SpecError, match=f"{told}$"):
        AdapterSpec(name="own", weight="out in", factors=FACTORS, scale=text)


def test_the_scale_is_1_by_default():
    assert AdapterSpec(name="own", weight="out in", factors=FACTORS).scale == raw(1.0)
