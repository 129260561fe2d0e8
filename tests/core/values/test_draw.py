"""Drawn values: fixed patterns entry by entry, their memory, and what cannot be drawn."""

import tracemalloc

import numpy as np
import pytest

from tnadapt import AdapterSpec, SiteError, SpecError, frozen, grid, init, normal, trainable, zeros
from tnadapt._frozen import FrozenMap
from tnadapt._values import sample
from tnadapt.binding import Factor, Slot
from tnadapt.initializers import Initializer, cyclic, rotary


def slot_of(law, modes, sizes, over=()):
    """The slot of a frozen factor with these modes and sizes."""
    inner = tuple(mode for mode in modes if mode not in over)
    return Slot("A", Factor(modes, law, False), tuple(sizes), FrozenMap(dict(zip(modes, sizes, strict=True))), inner)


@pytest.mark.parametrize("amount", [1.0, -0.3])
@pytest.mark.parametrize("over", [(), ("m0",), ("m0", "m1", "m2")])
@pytest.mark.parametrize("sizes", [(3, 4, 2), (4, 4, 4), (1, 1, 1)])
@pytest.mark.parametrize("kind", ["identity", "cyclic", "controlled_z"])
def test_a_pattern_follows_its_definition_entry_by_entry(kind, sizes, over, amount):
    modes = ("m0", "m1", "m2")
    found = sample(slot_of(Initializer(kind, amount), modes, sizes, over), 0)
    own = [axis for axis, mode in enumerate(modes) if mode not in over]
    for place in np.ndindex(*sizes):
        inner = [place[axis] for axis in (range(3) if kind == "identity" and len(own) == 1 else own)]
        wanted = {
            "identity": float(len(set(inner)) <= 1),
            "cyclic": float((place[0] - sum(place[1:])) % sizes[0] == 0),
            "controlled_z": -1.0 if all(place[axis] == sizes[axis] - 1 for axis in own) else 1.0,
        }[kind]
        assert found[place] == np.float64(np.float32(wanted * amount))


@pytest.mark.parametrize("over", [(), ("site",)])
def test_rotary_turns_pairs_as_rope_does(over):
    """RoPE: x cos + turned(x) sin, where turned(x) puts minus the upper half of x before its lower half."""
    sizes = (*[2 for _ in over], 5, 6, 6)
    found = sample(slot_of(rotary(100.0), (*over, "h", "a", "i"), sizes, over), 0).reshape(-1, 5, 6, 6)
    x = np.random.default_rng(0).standard_normal(6)
    for h in range(5):
        angles = h / 100.0 ** (np.arange(0, 6, 2) / 6)
        cos, sin = (np.concatenate([half, half]) for half in (np.cos(angles), np.sin(angles)))
        wanted = x * cos + np.concatenate([-x[3:], x[:3]]) * sin
        for matrices in found:
            np.testing.assert_allclose(matrices[h] @ x, wanted, rtol=0, atol=1e-6)  # values are rounded to float32


@pytest.mark.parametrize("shape", [(4, 3), (4, 6)])
def test_rotary_needs_pairs_and_a_square(shape):
    factors = {"M": trainable("out a", init=zeros()), "R": frozen("h a i", init=rotary())}
    spec = AdapterSpec(name="turned", weight="out (h i)", factors=factors)
    with pytest.raises(SiteError, match=r"factor 'R': expected the same, even size for 'a' and 'i'.*got 4 and [36]\."):
        spec.bind(grid(layers=1, kinds={"q": shape}), rank=4, sizes={"h": 1}, overparametrized=True)


@pytest.mark.parametrize("modes", ["a in", "h b a in"])
def test_rotary_needs_three_modes(modes):
    with pytest.raises(SpecError, match="factor 'R': rotary needs a position, a row and a column as its last modes"):
        AdapterSpec(
            name="turned",
            weight="out in",
            factors={"M": trainable("out h b a", init=zeros()), "R": frozen(modes, init=rotary())},
        )
    with pytest.raises(SpecError, match=r"rotary: expected a base above 0, got -1\.0"):
        AdapterSpec(
            name="turned",
            weight="out in",
            factors={"M": trainable("out h a", init=zeros()), "R": frozen("h a in", init=rotary(-1))},
        )


def test_a_frozen_pattern_is_made_for_the_sizes_of_each_shape():
    """The leading part of a larger pattern would be another tensor."""
    factors = {"A": trainable("r in", init=zeros()), "C": frozen("out r", init=cyclic())}
    spec = AdapterSpec(name="pattern", weight="out in", factors=factors)
    small, large = grid(layers=1, kinds={"q": (3, 2)}), grid(layers=1, kinds={"k": (5, 2)})
    params, alone = init(spec.bind((*small, *large), rank=2)), init(spec.bind(small, rank=2))
    np.testing.assert_array_equal(params["0.q.C"], alone["C"])
    assert params["0.k.C"].shape == (5, 2)
    with pytest.raises(SpecError, match="'A': shared: expected an initializer that is drawn, got cyclic"):
        AdapterSpec(name="pattern", weight="out in", factors={"A": trainable("out in", init=cyclic(), shared=True)})


@pytest.mark.parametrize("kind", ["identity", "cyclic", "controlled_z", "constant", "uniform"])
def test_values_of_many_modes_take_little_more_memory_than_themselves(kind):
    """The indices of all modes would take 22 times as much."""
    modes = tuple(f"m{n}" for n in range(22))
    slot = slot_of(Initializer(kind, 0.5), modes, (2,) * 22)
    tracemalloc.start()
    values = sample(slot, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * values.nbytes
    assert abs(values).max() <= 0.5


@pytest.mark.parametrize("kind", ["identity", "cyclic", "controlled_z", "constant", "normal", "orthogonal"])
def test_a_factor_of_as_many_modes_as_an_array_has_axes_is_drawn(kind):
    modes = tuple(f"m{n}" for n in range(64))
    assert sample(slot_of(Initializer(kind, 1.0), modes, (2, 2, 2, *[1] * 61)), 0).shape == (2, 2, 2, *[1] * 61)


def test_a_fan_that_no_float_can_hold_is_refused():
    slot = slot_of(normal(fan=" ".join(["m0"] * 40)), ("m0",), (2**31 - 1,))
    with pytest.raises(SiteError, match=r"A: expected a fan that a float can hold, got \(m0 .*1,240 bits"):
        sample(slot, 0)
