"""Contractions of arrays with named modes."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnadapt._values import contract, einsum, primed

RANDOM = np.random.default_rng(0)
SIZES = {"a": 1, "b": 2, "c": 3, "d": 2, "e": 1}


@st.composite
def contractions(draw):
    """Draw the modes of some operands, and some of these modes in any order as the answer."""
    modes = draw(st.lists(st.lists(st.sampled_from(sorted(SIZES)), unique=True, max_size=4), min_size=1, max_size=4))
    carried = sorted(set().union(*modes))
    answer = draw(st.permutations(carried))[: draw(st.integers(0, len(carried)))]
    return [tuple(one) for one in modes], tuple(answer)


@pytest.mark.parametrize("small", [einsum.SMALL, 0], ids=["a simple search", "a thorough search"])
@given(contraction=contractions())
def test_a_contraction_equals_einsum_of_numpy(small, contraction):
    modes, answer = contraction
    operands = [(RANDOM.standard_normal([SIZES[mode] for mode in one]), one) for one in modes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(einsum, "SMALL", small)
        einsum._expression.cache_clear()
        found = contract(operands, answer)
    wanted = np.einsum(f"{','.join(map(''.join, modes))}->{''.join(answer)}", *(array for array, _ in operands))
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_operands_are_contracted_over_modes_of_the_same_name():
    left, right = RANDOM.standard_normal((3, 4)), RANDOM.standard_normal((5, 4))
    found = contract([(left, ("out", "r")), (right, ("in", "r"))], ("in", "out"))
    np.testing.assert_allclose(found, (left @ right.T).T, atol=1e-12)


def test_a_mode_of_three_arrays_is_summed_once():
    a, b, c = RANDOM.standard_normal((3, 2)), RANDOM.standard_normal(2), RANDOM.standard_normal((4, 2))
    found = contract([(a, ("o", "r")), (b, ("r",)), (c, ("i", "r"))], ("o", "i"))
    np.testing.assert_allclose(found, a @ np.diag(b) @ c.T, atol=1e-12)


def test_there_may_be_more_modes_than_letters():
    names = [f"m{number}" for number in range(60)]
    arrays = [(np.full((1, 1), 2.0), (one, other)) for one, other in pairwise(names)]
    assert contract(arrays, (names[0], names[-1])).tolist() == [[2.0**59]]


def test_a_scalar_may_be_an_operand():
    assert contract([(np.array(3.0), ()), (np.ones(2), ("a",))], ("a",)).tolist() == [3.0, 3.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_the_answer_is_float64(dtype):
    found = contract([(np.full((2, 3), 2, dtype), ("a", "b")), (np.ones(3, dtype), ("b",))], ("a",))
    assert (found.dtype, found.tolist()) == (np.float64, [6.0, 6.0])


@pytest.mark.parametrize(
    ("shared", "wanted"),
    [
        ((), lambda array: array.sum() ** 2),
        (("r",), lambda array: (array.sum(axis=0) ** 2).sum()),
        (("out",), lambda array: (array.sum(axis=1) ** 2).sum()),
        (("out", "r"), lambda array: (array**2).sum()),
    ],
)
def test_an_inner_product_with_primed_operands_pairs_only_the_shared_modes(shared, wanted):
    array = RANDOM.standard_normal((3, 4))
    one = [(array, ("out", "r"))]
    assert contract([*one, *primed(one, shared)], ()) == pytest.approx(wanted(array))
    ((same, modes),) = primed(one, shared)
    assert same is array
    assert modes == tuple(mode if mode in shared else f"{mode}'" for mode in ("out", "r"))
