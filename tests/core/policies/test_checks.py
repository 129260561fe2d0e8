"""The checks that schedules have in common."""

import numpy as np
import pytest

from tnadapt import SiteError
from tnadapt.policies._checks import expect_betas, expect_count, expect_share, expect_slices, expect_state


def test_integers_of_numpy_are_taken():
    assert expect_count(np.int64(3), "here", "size") == 3
    with pytest.raises(SiteError, match=r"here: expected an integer of at least 0 as size, got 1.5\.\nWrite size=1\."):
        expect_count(1.5, "here", "size")


def test_a_share_is_below_one():
    assert expect_share(0, "here", "beta") == 0.0
    with pytest.raises(SiteError, match=r"here: expected a number from 0 to 1, without 1, as beta, got True"):
        expect_share(True, "here", "beta")


def test_slices_are_sorted_and_finite():
    assert list(expect_slices({"b": [1.0], "a": [2.0, 3.0]}, "here")) == ["a", "b"]
    with pytest.raises(SiteError, match=r"here: expected a finite number for each slice of 'a'"):
        expect_slices({"a": [[1.0]]}, "here")
    with pytest.raises(SiteError, match=r"here: expected two numbers as betas, got \(0.5,\)"):
        expect_betas((0.5,), "here")


def test_a_state_is_that_of_the_same_arguments():
    state = {"asked": {"a": 1}, "time": 3}
    assert expect_state(state, "Here", {"asked", "time"}, {"a": 1})["time"] == 3
    with pytest.raises(SiteError, match=r"Here: expected the state of a schedule with the arguments {'a': 2}"):
        expect_state(state, "Here", {"asked", "time"}, {"a": 2})
