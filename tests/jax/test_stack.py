"""What a grid of sites reads of the params equals what each site reads by itself, in values and gradients."""

from dataclasses import dataclass
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tnadapt_jax._stack import cut, stack_parts, take_rows


@dataclass(frozen=True)
class Place:
    """A part as `stack_parts` reads it: the name of an array, and where in it."""

    name: str
    cut: tuple


def grid_of(shape, place_at):
    grid = np.empty(shape, dtype=object)
    for index in np.ndindex(*shape):
        grid[index] = place_at(*index)
    return grid


def by_loop(grid, arrays):
    """Stack what each site reads, one after the other."""
    made = [cut(arrays[part.name], part.cut) for part in grid.flat]
    return jnp.stack(made).reshape(*grid.shape, *made[0].shape)


@st.composite
def grids(draw):
    """Grids of one or two axes over rows of one array or of several, in any order, also repeated or all the same."""
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    sizes = (4, 4, 4)  # the same for all, so that jax compiles little
    kind = draw(st.sampled_from(["walk", "any", "arrays"]))
    whole = draw(st.integers(0, 2))  # the axis that every site reads in part
    part = slice(0, draw(st.sampled_from([2, 4])))
    free = [axis for axis in range(3) if axis != whole]
    rows = [draw(st.lists(st.integers(0, sizes[axis] - 1), min_size=4, max_size=4)) for axis in free]
    moving = draw(st.permutations(range(2)))
    seed = draw(st.integers(0, 99))

    def place_at(*index):
        at = [0, 0]
        if kind == "walk":
            for axis, n in zip(moving, index, strict=False):
                at[axis] = rows[axis][n]
        else:
            random = np.random.default_rng([seed, *index])
            at = [int(random.integers(sizes[axis])) for axis in free]
        found = list(at)
        found.insert(whole, part)
        name = str(sum(index)) if kind == "arrays" else "0"
        return Place(name, tuple(found))

    grid = grid_of(shape, place_at)
    random = np.random.default_rng(seed)
    return grid, {part.name: random.standard_normal(sizes).astype(np.float32) for part in grid.flat}


def test_stack_parts_is_a_loop_over_all_sites():
    seen = set()

    @settings(max_examples=max(1, settings().max_examples // 3))
    @given(given_grid=grids())
    def tried(given_grid):
        grid, arrays = given_grid

        def stacked(arrays):
            made, along = stack_parts(grid, lambda part: arrays[part.name])
            seen.add(along)
            lead = [size if moves else 1 for size, moves in zip(grid.shape, along, strict=True)]
            wide = made.reshape(*lead, *made.shape[sum(along) :])
            return jnp.broadcast_to(wide, (*grid.shape, *wide.shape[grid.ndim :]))

        with jax.disable_jit():
            arrays = {name: jnp.asarray(value) for name, value in arrays.items()}
            (found, back), (wanted, by_one) = (jax.vjp(make, arrays) for make in (stacked, lambda a: by_loop(grid, a)))
            np.testing.assert_array_equal(found, wanted)
            dy = jnp.asarray(np.random.default_rng(0).standard_normal(found.shape), jnp.float32)
            for one, other in zip(*(jax.tree.leaves(way(dy)) for way in (back, by_one)), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)

    tried()
    assert len(seen) > 2  # of the ways in which axes can differ; few examples do not have all of them


@pytest.mark.parametrize(
    "rows", [[0, 1, 2, 3], [0], [3], [1, 2], [0, 2], [3, 1], [2, 2], [0, 3, 1], [1, 1, 0], [2, 2, 2]]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_are_taken_with_their_gradients(rows, axis):
    value = jnp.arange(32.0).reshape(4, 4, 2) ** 2
    found, back = jax.vjp(lambda value: take_rows(value, rows, axis), value)
    np.testing.assert_array_equal(found, np.take(np.asarray(value), rows, axis))
    dy = np.asarray(found) / 7
    wanted = np.zeros(value.shape, np.float32)
    for n, row in enumerate(rows):
        wanted[(slice(None),) * axis + (row,)] += np.take(dy, n, axis)
    np.testing.assert_allclose(back(jnp.asarray(dy))[0], wanted, rtol=1e-6)


@pytest.mark.parametrize("step", [1, 2])
def test_evenly_spaced_rows_need_no_scatter(step):
    rows = list(range(0, 4, step))
    text = str(jax.make_jaxpr(jax.grad(lambda value: take_rows(value, rows, 0).sum()))(jnp.ones((4, 3))))
    assert "scatter" not in text


def test_a_part_is_cut_by_slices():
    value = jnp.arange(24.0).reshape(2, 3, 4)
    for first, second in product(range(2), range(3)):
        np.testing.assert_array_equal(cut(value, (first, second, slice(0, 3))), value[first, second, :3])
