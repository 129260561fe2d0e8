"""Which paths a rule matches, and which layer and kind are read from a path, for the core, torch and JAX alike."""

import re
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnadapt import SiteError, families, sites_of
from tnadapt.binding import in_layers, match, places_of

PATHS = ["encoder.layer.0.query", "encoder.layer.0.key", "encoder.layer.1.query", "pooler", "query_norm"]


def find(rule, paths=PATHS):
    return match(paths, rule, what="target", things="modules")


def places(*paths, among=None):
    found = sites_of(dict.fromkeys(paths, (2, 3)), among=among)
    return [(site.coordinates["layer"], site.coordinates["kind"]) for site in found]


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        (["query"], [0, 2]),
        (("query", "pooler"), [0, 2, 3]),
        ({"layer.0.key"}, [1]),
        (["encoder.layer.1.query"], [2]),
        (r".*\.(query|key)", [0, 1, 2]),
        ("pooler", [3]),
        (r"encoder\.layer\.\d+\.key", [1]),
    ],
)
def test_a_list_names_suffixes_and_a_string_is_a_regular_expression(rule, found):
    assert find(rule) == [PATHS[number] for number in found]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("query", "expected a regular expression that matches whole paths of modules, got 'query', which matches none"),
        ("(", "expected a regular expression, got '('"),
        (["uery"], "expected names of modules, got 'uery', which matches none.\nThe nearest names are query"),
        (["query", "value"], "expected names of modules, got 'value', which matches none"),
        ([], "expected names of modules, got []"),
        ([3], "expected names of modules, got [3]"),
        (3, "expected names of modules, got 3"),
    ],
)
def test_a_rule_that_matches_nothing_is_rejected(rule, message):
    with pytest.raises(SiteError, match=f"^target: {re.escape(message)}"):
        find(rule)


def test_no_names_are_suggested_if_there_are_none():
    with pytest.raises(SiteError, match=r"There is no name to choose from\.$"):
        find(["query"], [])


def test_the_layer_is_the_first_number_and_the_kind_is_the_rest_of_the_path():
    assert places("h.0.attn.q", "h.12.attn.q", "h.3.experts.1.up") == [
        (0, "attn.q"),
        (12, "attn.q"),
        (3, "experts.1.up"),
    ]


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("h.{}.attn.c_attn", "attn.c_attn"),
        ("encoder.layer.{}.attention.self.query", "attention.self.query"),
        ("encoder.block.{}.layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wi"),
        ("blocks.{}.norm", "norm"),
        ("layers_{}.q", "q"),
        ("encoder.layers.encoder_layer_{}.mlp.0", "mlp.0"),
        ("block_{}.Dense_1", "Dense_1"),
        ("0.encoder.layer.{}.query", "query"),
        ("{}.q", "q"),
        ("{}", "linear"),
        ("layers.{}", "layers"),
        ("layers_{}", "layers"),
    ],
)
def test_layers_are_read_from_every_usual_form_of_path(form, kind):
    assert places(form.format(0), form.format(3), form.format(12)) == [(0, kind), (3, kind), (12, kind)]


def test_a_number_at_the_end_of_a_name_is_a_layer_only_if_it_has_a_sibling():
    assert places("fc_1.q", "fc_2.v", "norm_1.x") == [(0, "fc_1.q"), (0, "fc_2.v"), (0, "norm_1.x")]
    assert places("block_0.q") == [(0, "block_0.q")]
    assert places("block_0.q", among=["block_0.q.weight", "block_1.q.weight"]) == [(0, "q")]
    assert places("fc1.q", "fc2.q") == [(0, "fc1.q"), (0, "fc2.q")]


def test_a_number_inside_a_layer_is_not_a_layer():
    assert places("block_1.mlp.0", "block_2.mlp.0", "block_1.fc_1.q", "block_1.fc_2.q") == [
        (1, "mlp.0"),
        (2, "mlp.0"),
        (1, "fc_1.q"),
        (1, "fc_2.q"),
    ]


def test_outside_a_stack_the_path_is_the_kind():
    assert places("head", "h.1.q", "blocks.4", "2") == [(0, "head"), (1, "h.q"), (4, "blocks.blocks"), (2, "linear")]


def test_with_several_stacks_the_kind_begins_with_the_stack():
    assert places("encoder.0.q", "decoder.0.q") == [(0, "encoder.q"), (0, "decoder.q")]
    assert places("enc.layer_0.q", "enc.layer_1.q", "dec.layer_0.q", "dec.layer_1.q") == [
        (0, "enc.layer.q"),
        (1, "enc.layer.q"),
        (0, "dec.layer.q"),
        (1, "dec.layer.q"),
    ]


def test_a_site_keeps_the_given_path_and_shape():
    (site,) = sites_of({"h.0.q": (4, 5, 3)})
    assert (site.path, site.shape) == ("h.0.q", (4, 5, 3))
    with pytest.raises(SiteError, match="at least 1, got 0"):
        sites_of({"h.0.q": (4, 0)})


def test_in_layers_keeps_the_paths_of_the_given_layers():
    paths = ["block_0.q", "block_1.q", "block_2.q", "head"]
    assert in_layers(paths, 1) == ["block_1.q"]
    assert in_layers(paths, [0, 2]) == ["block_0.q", "block_2.q"]
    with pytest.raises(
        SiteError, match=r"expected layers that hold a target, got \[7\]\.\nThe targets are in layers \["
    ):
        in_layers(paths, [1, 7])


WORDS = st.sampled_from(["q", "mlp", "layers", "layer", "h", "0", "3", "layer_0", "layer_1", "fc_2", "x1"])


@given(st.lists(st.lists(WORDS, min_size=1, max_size=4).map(".".join), unique=True, max_size=8))
def test_a_path_can_be_rebuilt_from_its_place(paths):
    """The stack, the number and the inner path are parts of the path, and the order of the paths does not matter."""
    found = places_of(paths)
    assert list(found) == paths
    for path, place in found.items():
        if place.layer is None:
            assert place.inner == path
        else:
            ends = ("", f".{place.inner}")  # a layer that is itself the module is named after its stack
            heads = (f"{place.stack}.", f"{place.stack}_") if place.stack else ("",)
            assert path in {f"{head}{place.layer}{end}" for head in heads for end in ends}
    assert places_of(paths[::-1]) == found


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["blocks.0.fc", "blocks.1.fc", "fc"], [(0, "blocks.fc"), (1, "blocks.fc"), (0, "fc")]),
        (["h.0.q", "h_0.q", "h_1.q"], [(0, "h.0.q"), (0, "h_0.q"), (1, "h.q")]),
        (["a.1", "a.01", "a.2"], [(1, "a.1"), (1, "a.01"), (2, "a.a")]),
    ],
)
def test_no_two_paths_have_the_same_layer_and_kind(paths, found):
    assert places(*paths) == found
    assert len(set(places(*paths))) == len(paths)
    families.lora().bind(sites_of(dict.fromkeys(paths, (4, 4))), rank=1)


@given(st.lists(st.lists(WORDS, min_size=1, max_size=4).map(".".join), unique=True, min_size=1, max_size=8))
def test_the_coordinates_of_different_paths_differ(paths):
    assert len(set(places(*paths))) == len(paths)


def test_a_layer_may_be_an_integer_of_any_library():
    assert in_layers(["h.0.q", "h.1.q"], np.int64(1)) == ["h.1.q"]
    assert in_layers(["h.0.q", "h.1.q"], [np.int64(1)]) == ["h.1.q"]


@pytest.mark.parametrize("given", [None, ["h.0.q"], "h.0.q", {0: (4, 4)}])
def test_shapes_come_by_path(given):
    with pytest.raises(SiteError, match=r"^sites_of: expected shapes by path, got .*\nWrite"):
        sites_of(given)


def test_a_place_is_a_value():
    one, other = places_of(["h.0.q"])["h.0.q"], places_of(["h.0.q", "h.1.q"])["h.0.q"]
    assert len({one, other}) == 1
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'layer'"):
        one.layer = 3
