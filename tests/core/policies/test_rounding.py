"""The schedule of a DMRG-like sweep: ranks at steps."""

import pytest

from tnadapt import SiteError
from tnadapt.policies import Rounding


def test_ranks_at_steps():
    rounding = Rounding({4: 2, 2: 3})
    assert [rounding.step() for _ in range(5)] == [None, 3, None, 2, None]


def test_a_state_goes_on():
    first, resumed = Rounding({2: 3}), Rounding({2: 3})
    first.step()
    resumed.load_state_dict(first.state_dict())
    assert resumed.step() == 3
    with pytest.raises(SiteError, match=r"Rounding: expected the state of a schedule with the arguments"):
        Rounding({2: 2}).load_state_dict(first.state_dict())


@pytest.mark.parametrize(("ranks", "match"), [
    ({}, r"Rounding: expected a rank for at least one step, got a"),
    (8, r"Rounding: expected a rank for at least one step, got 8"),
    ({0: 8}, r"Rounding: expected an integer of at least 1 as step, got 0"),
    ({5: 0}, r"Rounding: expected an integer of at least 1 as rank, got 0"),
    ({5: 2, 9: 4}, r"Rounding: expected ranks that fall, got 2 at step 5 and 4 at 9"),
])  # fmt: skip
def test_wrong_arguments(ranks, match):
    with pytest.raises(SiteError, match=match):
        Rounding(ranks)
