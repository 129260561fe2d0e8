"""What the options of a family change besides its formula: starts and scales, by the papers."""

import pytest

from tnadapt import families
from tnadapt.initializers import kaiming_uniform, normal, over_rank, over_sqrt_rank


@pytest.mark.parametrize("family", [families.lora, families.lorta])
def test_a_stabilized_scale_divides_by_the_root_of_the_rank(family):
    assert family(alpha=4).scale == over_rank("r", alpha=4)
    assert family(alpha=4, rank_stabilized=True).scale == over_sqrt_rank("r", alpha=4)


def test_gaussian_starts():
    assert families.lora().factors["A"].init == kaiming_uniform("in")
    assert families.lora(gaussian=True).factors["A"].init == normal(fan="r r")
    found = families.flora(gaussian=True).factors
    assert {found[name].init for name in ("P_out", "P_in")} == {normal(0.02)}
