"""Masks and volumes: against sets and products of Python integers."""

import math
from functools import reduce
from operator import or_

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.core.planning.networks import dense
from tnadapt._planning.tensors import LARGEST, WORD, Volumes, bits_of, join, parts_of, problem_of, words_of

MASKS = st.lists(st.integers(0, 2**20 - 1), max_size=6)


@given(masks=MASKS)
def test_parts_are_the_modes_that_the_same_masks_hold(masks):
    holders = {}
    for bit in bits_of(reduce(or_, masks, 0)):
        holders.setdefault(tuple(mask >> bit & 1 for mask in masks), []).append(bit)
    assert sorted(map(bits_of, parts_of(masks))) == sorted(holders.values())


@given(masks=MASKS)
def test_joined_masks_are_made_of_the_same_parts(masks):
    parts = parts_of(masks)
    for mask, joined in zip(masks, join(masks, parts), strict=True):
        assert mask == sum(parts[place] for place in bits_of(joined))


@given(mask=st.integers(0, 2**200))
def test_bits_of_a_mask(mask):
    assert sum(1 << bit for bit in bits_of(mask)) == mask
    assert bits_of(mask) == sorted(bits_of(mask))


@given(data=st.data(), count=st.sampled_from([0, 1, 12, 59, 60, 61, 130]))
def test_volumes_of_masks_of_any_width(data, count):
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    masks = data.draw(st.lists(st.integers(0, 2**count - 1), min_size=1, max_size=4))
    volumes = Volumes(sizes).of(words_of(masks, count))
    wanted = [float(math.prod(sizes[bit] for bit in bits_of(mask))) for mask in masks]
    np.testing.assert_allclose(volumes, wanted, rtol=1e-12)


def test_volumes_stop_at_the_largest():
    volumes = Volumes([2**40] * 50 + [10**400])
    masks = words_of([1, (1 << 50) - 1, (1 << 51) - 1, 1 << 50], 51)
    assert volumes.of(masks).tolist() == [2.0**40, *[float(LARGEST)] * 3]


def test_only_what_passes_a_word_is_joined():
    narrow, wide = dense(3, seed=0, modes=WORD, share=0.9), dense(3, seed=0, modes=WORD + 20, share=0.9)
    assert len(problem_of(narrow).sizes) == len(narrow.sizes)
    assert len(problem_of(wide).sizes) <= 2**4 - 1
    assert math.prod(problem_of(wide).sizes) == math.prod(wide.sizes.values())
