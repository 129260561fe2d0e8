"""Arguments of a spec that are not of their kind are all reported at once, before anything else is checked."""

import pytest

from tnadapt import AdapterSpec, SpecError, raw, trainable, zeros

FACTORS = {"A": trainable("out r", init=zeros()), "B": trainable("r in")}


def test_every_wrong_kind_is_reported_at_once():
    with pytest.raises(SpecError, match="not valid") as caught:
        AdapterSpec(name="own", weight=("out", "in"), over=3, factors={"A": "out r"}, scale=raw, centered=1, caps=[])
    words = [fault.partition(":")[0] for fault in caught.value.faults]
    assert words == ["weight", "over", "factor 'A'", "scale", "centered", "caps"]


@pytest.mark.parametrize("scale", [2, 2.0, 0.5])
def test_a_number_is_a_scale(scale):
    spec = AdapterSpec(name="own", weight="out in", factors=FACTORS, scale=scale)
    assert spec.scale == raw(scale)


def test_the_scale_is_1_by_default():
    assert AdapterSpec(name="own", weight="out in", factors=FACTORS).scale == raw(1.0)
