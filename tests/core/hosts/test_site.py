"""One site: its shape, its coordinates, and its block of a larger weight."""

import pytest

from tnadapt import Site, SiteError
from tnadapt.binding import Block


@pytest.mark.parametrize(
    ("shape", "start"),
    [
        ((8, 4), (5, 0)),
        ((12, 5), (0, 0)),
        ((4, 4), (0,)),
        ((4, 4), (-1, 0)),
        ((1, 12, 4), (0, 0, 0)),
        ((1, 2, 2), (0, 0)),
    ],
)
def test_a_block_outside_its_weight_is_rejected(shape, start):
    with pytest.raises(SiteError, match=r"expected a block inside the weight w of shape \(12, 4\), got one of shape"):
        Site("w[0]", shape, block=Block("w", (12, 4), start))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"shape": ()}, "at least one axis"),
        ({"shape": (3, 0)}, "at least 1, got 0"),
        ({"shape": (3, 2.0)}, r"at least 1, got 2\.0"),
        ({"shape": (3, 2), "coordinates": {"layer": 1.0}}, "an integer or a string as coordinate 'layer'"),
    ],
)
def test_an_invalid_shape_or_coordinate_is_rejected(words, message):
    with pytest.raises(SiteError, match=message):
        Site("h.0.q", **words)


def test_a_site_has_a_layer_and_a_kind_by_default():
    site = Site("h.0.q", (3, 2))
    assert dict(site.coordinates) == {"layer": 0, "kind": "h.0.q"}
    assert (site.weight, site.weight_shape, site.rectangle) == ("h.0.q", (3, 2), (slice(0, 3), slice(0, 2)))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("h.\ud800.q", {}),
        ("h.0.q", {"coordinates": {"kind": "\udfff"}}),
        ("h.0.q", {"coordinates": {"\ud83d": 1}}),
        ("h.0.q", {"block": Block("\ud800", (3, 2), (0, 0))}),
    ],
)
def test_half_of_a_surrogate_pair_is_rejected(path, words):
    with pytest.raises(SiteError, match=r"expected names that UTF-8 can encode, got '.*\\ud"):
        Site(path, (3, 2), **words)


def test_any_other_text_is_a_path():
    for path in ("h.\u00e9.\U0001f600", "a b\n\t\"'\\", "\0", ""):
        assert Site(path, (3, 2)).path == path
