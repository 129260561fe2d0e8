"""Where modules stand, from their paths alone."""

import pytest

from tnadapt import SiteError, sites_of


def places(*paths):
    return [(site.coordinates["layer"], site.coordinates["kind"]) for site in sites_of(dict.fromkeys(paths, (2, 3)))]


def test_the_layer_is_the_first_number_and_the_kind_what_follows():
    assert places("h.0.attn.q", "h.12.attn.q", "h.3.experts.1.up") == [
        (0, "attn.q"),
        (12, "attn.q"),
        (3, "experts.1.up"),
    ]


def test_outside_of_any_stack_the_path_is_the_kind():
    assert places("head", "h.1.q", "blocks.4", "2") == [(0, "head"), (1, "h.q"), (4, "blocks.blocks"), (2, "linear")]


def test_several_stacks_tell_their_kinds_apart():
    assert places("encoder.0.q", "decoder.0.q") == [(0, "encoder.q"), (0, "decoder.q")]


def test_the_shape_and_the_path_are_those_given():
    (site,) = sites_of({"h.0.q": (4, 5, 3)})
    assert (site.path, site.shape) == ("h.0.q", (4, 5, 3))
    with pytest.raises(SiteError, match="at least 1, got 0"):
        sites_of({"h.0.q": (4, 0)})
