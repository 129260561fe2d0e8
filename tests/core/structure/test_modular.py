"""Arithmetic modulo a prime, compared with Python's integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tnadapt import PlanError
from tnadapt._structure.modular import PRIME, Budget, contract, multiply, question_of, rank, residues


def ample():
    return Budget("a test", flops=10**12)


def by_hand(left, right):
    return [
        [sum(int(a) * int(b) for a, b in zip(row, column, strict=True)) % PRIME for column in right.T] for row in left
    ]


def of_rank(rows, columns, wanted, seed):
    random = np.random.default_rng(seed)
    return multiply(residues((rows, wanted), random), residues((wanted, columns), random))


def test_the_modulus_is_a_prime():
    assert all(PRIME % divisor for divisor in range(2, int(PRIME**0.5) + 1))


@given(shape=st.tuples(*[st.integers(0, 6)] * 3), seed=st.integers(0, 99))
def test_a_matrix_product_equals_that_of_python_integers(shape, seed):
    rows, terms, columns = shape
    random = np.random.default_rng(seed)
    left, right = residues((rows, terms), random), residues((terms, columns), random)
    assert multiply(left, right).tolist() == by_hand(left, right)


def test_the_largest_residues_do_not_overflow():
    left = np.full((1, 3 * 4096), PRIME - 1)
    assert multiply(left, left.T).tolist() == [[3 * 4096 * (PRIME - 1) ** 2 % PRIME]]


def test_a_sum_of_millions_of_terms_is_exact():
    terms, value = 3 * 2**20 + 1, 2**16 - 1  # the sum is odd and above 2^53, so a single float64 would round it
    left = np.full((1, terms), value)
    assert multiply(left, left.T).tolist() == [[terms * value**2 % PRIME]]


def test_a_long_sum_is_computed_in_parts(monkeypatch):
    random = np.random.default_rng(0)
    left, right = residues((3, 11), random), residues((11, 2), random)
    monkeypatch.setattr("tnadapt._structure.modular.TERMS", 4)
    assert multiply(left, right).tolist() == by_hand(left, right)


@settings(max_examples=25)
@given(sizes=st.tuples(*[st.integers(1, 90)] * 2), part=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_rank_of_a_product_is_its_inner_size(sizes, part, seed):
    rows, columns = sizes
    wanted = round(part * min(rows, columns))
    assert rank(of_rank(rows, columns, wanted, seed), ample()) == wanted


def test_the_rank_of_simple_matrices():
    assert rank(np.eye(70, dtype=np.int64)[:, ::-1], ample()) == 70
    assert rank(np.zeros((5, 3), dtype=np.int64), ample()) == 0
    assert rank(np.zeros((0, 3), dtype=np.int64), ample()) == 0
    assert rank(np.tri(40, 80, dtype=np.int64), ample()) == 40
    assert (
        rank(np.kron(np.eye(2, dtype=np.int64), np.ones((40, 40), dtype=np.int64)), ample()) == 2
    )  # zero columns in a panel


def test_rank_does_not_change_the_matrix():
    matrix = of_rank(40, 50, 7, 0)
    before = matrix.copy()
    rank(matrix, ample())
    np.testing.assert_array_equal(matrix, before)


@pytest.mark.parametrize(
    "equation", ["ab,bc,cd->ad", "abr,rb,r->ra", "ar,br,cr->abc", "ab,c->bca", "a,a,a->", "abc->ca"]
)
def test_a_contraction_equals_einsum(equation):
    random = np.random.default_rng(3)
    inputs, answer = equation.split("->")
    modes = [tuple(words) for words in inputs.split(",")]
    sizes = {"a": 3, "b": 4, "c": 2, "d": 5, "r": 6}
    small = [random.integers(0, 50, [sizes[mode] for mode in one]) for one in modes]
    wanted = np.einsum(equation, *small) % PRIME
    np.testing.assert_array_equal(contract(question_of(modes, tuple(answer), sizes), small, ample()), wanted)


def test_work_beyond_the_budget_is_refused():
    random = np.random.default_rng(0)
    question = question_of([("a", "b"), ("b", "c")], ("a", "c"), {"a": 3, "b": 4, "c": 5})
    operands = [residues((3, 4), random), residues((4, 5), random)]
    budget = Budget("a test", flops=2 * 120 + 119)
    contract(question, operands, budget)
    contract(question, operands, budget)
    with pytest.raises(PlanError, match=r"a test: expected at most 359 flops modulo a prime, got more"):
        contract(question, operands, budget)
    with pytest.raises(PlanError, match=r"expected at most 10 flops"):
        rank(residues((3, 4), random), Budget("a test", flops=10))
    with pytest.raises(PlanError, match=r"a test: expected arrays of at most 14 entries, got one of 15"):
        contract(question, operands, Budget("a test", flops=10**6, entries=14))
