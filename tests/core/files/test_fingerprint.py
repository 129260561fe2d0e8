"""Fingerprints of weights: they allow for the rounding of a dtype, and tell another weight."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.files.forged import digest, taken
from tnadapt import AdapterSpec, FormatError, Site, frozen, grid, init, load, save, trainable, zeros
from tnadapt._files.fingerprint import DIGITS, SAMPLES, check_fingerprint, check_fingerprints, fingerprint_of
from tnadapt.initializers import host

SITE = Site("w", (6, 4))
SHAPES = [(1, 1), (3, 5), (6, 4), (40, 30), (7, 3, 2)]


def weight_of(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_fingerprint_has_numbers_of_the_weight(shape):
    weight = weight_of(shape)
    found = np.frombuffer(bytes.fromhex(fingerprint_of(weight)), "<f2")
    assert (len(found), len(fingerprint_of(weight))) == (SAMPLES, DIGITS)
    assert {*found.tolist()} <= {*weight.astype("<f2").reshape(-1).tolist()}
    assert (found[0], found[-1]) == (np.float16(weight.flat[0]), np.float16(weight.flat[-1]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@given(seed=st.integers(0, 99), bits=st.sampled_from([3, 7, 10, 23]))
def test_a_rounded_weight_is_the_same(shape, seed, bits):
    """3 bits are those of float8, 7 of bfloat16."""
    weight = weight_of(shape, seed)
    mantissa, exponent = np.frexp(weight)
    rounded = np.ldexp(np.round(mantissa * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent)
    check_fingerprint("a", SITE, fingerprint_of(weight), rounded)


@pytest.mark.parametrize("shape", [(6, 4), (40, 30)], ids=str)
@given(seed=st.integers(0, 99))
def test_another_weight_is_refused(shape, seed):
    known = fingerprint_of(weight_of(shape, seed))
    for other in (weight_of(shape, seed + 100), -weight_of(shape, seed), np.zeros(shape), weight_of(shape, seed) * 2):
        with pytest.raises(
            FormatError, match=r"^a: expected the weight of w that the adapter was trained with, got an"
        ):
            check_fingerprint("a", SITE, known, other)


def test_a_weight_that_is_not_finite_is_refused():
    known = fingerprint_of(weight_of((6, 4)))
    with pytest.raises(FormatError, match="a: expected the weight of w"):
        check_fingerprint("a", SITE, known, np.full((6, 4), np.nan))


@pytest.mark.parametrize("size", [1e-6, 1e-7, 1e-8, 1e-30])
def test_a_weight_of_tiny_numbers_is_itself(size):
    weight = weight_of((6, 4)) * size
    check_fingerprint("a", SITE, fingerprint_of(weight), weight)


def test_large_numbers_have_a_fingerprint_too():
    weight = weight_of((6, 4)) * 1e30
    check_fingerprint("a", SITE, fingerprint_of(weight), weight)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({}, "a: expected a fingerprint for each site, got a file that differs in w"),
        (
            {"w": "0" * DIGITS, "v": "0" * DIGITS},
            "a: expected a fingerprint for each site, got a file that differs in v",
        ),
        ({"w": "0" * (DIGITS - 1)}, f"a: expected {DIGITS} hexadecimal digits for the weight of w"),
        ({"w": "G" * DIGITS}, "hexadecimal digits for the weight of w"),
        ({"w": "A" * DIGITS}, "hexadecimal digits for the weight of w"),
        ({"w": "\u0661" * DIGITS}, "hexadecimal digits for the weight of w"),
        ({"w": 3}, "hexadecimal digits for the weight of w"),
        ({"w": None}, "hexadecimal digits for the weight of w"),
    ],
)
def test_forged_fingerprints_are_refused(known, message):
    with pytest.raises(FormatError, match=message):
        check_fingerprints("a", known, {"w": SITE})


GATED = AdapterSpec(
    name="gated", weight="out in", factors={"W": frozen("out in", init=host()), "s": trainable("out", init=zeros())}
)
SITES = grid(layers=2, kinds={"q": (6, 4)})


@pytest.fixture
def saved(tmp_path):
    adapter = GATED.bind(SITES)
    weights = {site.path: weight_of((6, 4), number) for number, site in enumerate(SITES)}
    save(adapter, init(adapter, weights), tmp_path / "a")
    return tmp_path / "a"


def test_a_file_has_the_fingerprint_of_each_weight_and_not_the_weight(saved):
    _, text, _ = taken(saved.read_bytes())
    assert text["hosts"] == {site.path: fingerprint_of(weight_of((6, 4), n)) for n, site in enumerate(SITES)}
    adapter, params = load(saved)
    assert adapter == GATED.bind(SITES)
    assert {*params} == {*adapter.slots}


@pytest.mark.parametrize("hosts", [{}, [], None, {"layers.0.q": "0" * DIGITS}, "0"])
def test_a_file_without_right_fingerprints_is_refused(hosts, saved):
    header, text, body = taken(saved.read_bytes())
    plain = json.dumps(text | {"hosts": hosts})
    whole = json.dumps(header | {"__metadata__": {"tnadapt": f"{digest(plain)} {plain}"}}).encode()
    saved.write_bytes(len(whole).to_bytes(8, "little") + whole + body)
    with pytest.raises(
        FormatError, match=r"a: expected a fingerprint for each site|file.hosts: expected a value of type"
    ):
        load(saved)


def test_params_without_the_weights_are_not_saved(tmp_path):
    adapter = GATED.bind(SITES)
    with pytest.raises(FormatError, match=r"params: expected the host's weight as 'layers.0.q:host', got none"):
        save(adapter, {name: np.zeros(slot.shape) for name, slot in adapter.slots.items()}, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
