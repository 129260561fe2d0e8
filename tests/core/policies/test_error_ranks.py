"""LoSA's ranks from errors: the formula, the sum, the limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnadapt import SiteError
from tnadapt.policies import ranks_from_errors


@given(
    errors=st.lists(st.floats(0, 100), min_size=1, max_size=12).filter(sum),
    mean=st.integers(1, 16),
)
def test_the_sum_is_the_mean_and_limits_hold(errors, mean):
    named = {f"layer {number}": error for number, error in enumerate(errors)}
    ranks = ranks_from_errors(named, mean)
    assert sum(ranks.values()) == mean * len(errors)
    assert all(1 <= rank <= 16 for rank in ranks.values())
    for one, other in ((a, b) for a in named for b in named if named[a] > named[b]):
        assert ranks[one] >= ranks[other] - 1, (one, other)  # a rank that was rounded up can be one above


def test_the_ranks_are_in_proportion_to_the_errors():
    assert ranks_from_errors({"a": 1.0, "b": 2.0, "c": 3.0}, 4) == {"a": 2, "b": 4, "c": 6}
    assert ranks_from_errors({"a": 0.0, "b": 99.0, "c": 1.0}, 6) == {"a": 1, "b": 16, "c": 1}


def test_what_is_missing_goes_to_the_largest_errors_and_what_is_too_much_comes_from_the_smallest():
    assert ranks_from_errors({"a": 1.0, "b": 1.0, "c": 1.001}, 1, high=2) == {"a": 1, "b": 1, "c": 1}
    assert ranks_from_errors({"a": 5.0, "b": 0.01, "c": 0.01}, 3, high=4) == {"a": 4, "b": 3, "c": 2}
    assert ranks_from_errors({"a": 5.0, "b": 0.02, "c": 0.01}, 2) == {"a": 4, "b": 1, "c": 1}


@pytest.mark.parametrize(("errors", "words", "match"), [
    ({}, {"mean": 4}, r"ranks_from_errors: expected the error of at least one layer, got a dict"),
    ({"a": 1.0, "b": -1.0, "c": -2.0}, {"mean": 4}, r"^ranks_from_errors: .* at least 0, got -1.0 for 'b'"),
    ({"a": float("nan")}, {"mean": 4}, r"expected errors of at least 0, got nan"),
    ({"a": 0.0}, {"mean": 4}, r"expected an error above 0, got 0 for each of 1 layers"),
    ({"a": 1.0}, {"mean": 17}, r"expected a mean from 1 to 16, the limits of a rank, got 17"),
    ({"a": 1.0}, {"mean": 1.5}, r"expected an integer of at least 1 as mean, got 1.5"),
])  # fmt: skip
def test_wrong_errors(errors, words, match):
    with pytest.raises(SiteError, match=match):
        ranks_from_errors(errors, **words)
