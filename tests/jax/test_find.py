"""`find_sites`: targets, layouts, stacks of layers, and the same names as in the PyTorch binding."""

import re

import jax.numpy as jnp
import pytest

import tnadapt_jax
from tnadapt import SiteError

FLAT = {
    "encoder.layer.0.attention.query.weight": jnp.zeros((6, 4)),
    "encoder.layer.0.attention.query.bias": jnp.zeros(6),
    "encoder.layer.1.attention.query.weight": jnp.zeros((6, 4)),
    "pooler.dense.weight": jnp.zeros((4, 4)),
}
NESTED = {"blocks": [{"up": {"kernel": jnp.zeros((4, 6))}, "down": {"kernel": jnp.zeros((6, 4))}} for _ in range(2)]}
STACKED = {"decoder": {"layers": {"up": {"kernel": jnp.zeros((4, 3, 6))}, "norm": {"scale": jnp.zeros((3, 4))}}}}


def places(leaves):
    return [(s.path, s.shape, s.coordinates["layer"], s.coordinates["kind"]) for s in leaves.sites]


def test_a_flat_tree_gives_the_names_of_the_pytorch_binding():
    found = tnadapt_jax.find_sites(FLAT, target=["query"], layout="hf-torch")
    assert places(found) == [
        ("encoder.layer.0.attention.query", (6, 4), 0, "attention.query"),
        ("encoder.layer.1.attention.query", (6, 4), 1, "attention.query"),
    ]
    assert found.entries[0].path == "encoder.layer.0.attention.query.weight"
    assert hash(found) == hash(tnadapt_jax.find_sites(FLAT, target=["query"], layout="out in"))
    assert "encoder.layer.1.attention.query  1      attention.query  6 x 4   encoder.layer.1" in str(found)


def test_a_nested_tree_with_transposed_weights_is_found():
    found = tnadapt_jax.find_sites(NESTED, target=r"blocks\.\d\.(up|down)", layout="nnx")
    assert sorted(places(found)) == [
        ("blocks.0.down", (4, 6), 0, "down"),
        ("blocks.0.up", (6, 4), 0, "up"),
        ("blocks.1.down", (4, 6), 1, "down"),
        ("blocks.1.up", (6, 4), 1, "up"),
    ]
    assert {leaf.roles for leaf in found.entries} == {("in", "out")}


@pytest.mark.parametrize("axis", [1, -2])
def test_a_layer_axis_given_as_a_number_indexes_the_layers(axis):
    found = tnadapt_jax.find_sites(STACKED, target=["up"], layout="linen", layer_axis=axis)
    assert places(found) == [(f"decoder.layers.up[{n}]", (6, 4), n, "decoder.layers.up") for n in range(3)]
    assert [(leaf.axis, leaf.index, leaf.stored) for leaf in found.entries] == [(1, n, (4, 6)) for n in range(3)]


def test_a_layer_axis_given_by_path_names_layers_as_if_they_were_separate():
    found = tnadapt_jax.find_sites(STACKED, target=["up"], layout="linen", layer_axis={"decoder.layers": 1})
    assert places(found) == [(f"decoder.layers.{n}.up", (6, 4), n, "up") for n in range(3)]
    both = tnadapt_jax.find_sites(
        STACKED | {"head": {"kernel": jnp.zeros((4, 2))}},
        target=["up", "head"],
        layout="linen",
        layer_axis={"decoder.layers": 1},
    )
    assert places(both)[-1] == ("head", (2, 4), 0, "head")


def test_stacks_of_layers_are_distinguished_by_their_paths():
    tree = {side: [{"q": {"weight": jnp.zeros((3, 2))}}] for side in ("encoder", "decoder")}
    found = tnadapt_jax.find_sites(tree, target=["q"], layout="out in")
    assert sorted(site.coordinates["kind"] for site in found.sites) == ["decoder.q", "encoder.q"]


def test_an_axis_can_be_split_in_the_leaf():
    tree = {"query": {"kernel": jnp.zeros((8, 2, 3))}, "out": {"kernel": jnp.zeros((2, 3, 8))}}
    found = tnadapt_jax.find_sites(tree, target=["query"], layout="in out out")
    found += tnadapt_jax.find_sites(tree, target=["out"], layout="in in out")
    both = tnadapt_jax.find_sites(tree, layout={"out": "in in out", "query": "in out out"})
    assert {*both.entries} == {*found.entries}
    assert [site.shape for site in found.sites] == [(6, 8), (8, 6)]


BAD = {
    "name": (FLAT, {"target": ["querry"]}, r"target: expected names of leaves, got 'querry'.*nearest names are query"),
    "one of two names": (FLAT, {"target": ["query", "value"]}, r"got 'value', which matches none"),
    "rule": (FLAT, {"target": r"encoder\.query"}, r"which matches none.*nearest names are encoder"),
    "no rule": (FLAT, {"target": []}, r"expected names of leaves, got \[\]"),
    "no regular expression": (FLAT, {"target": "("}, r"expected a regular expression, got"),
    "empty tree": ({"name": "x"}, {"target": ["q"]}, r"which matches none.*There is no name"),
    "layout": (
        FLAT,
        {"target": ["query"], "layout": "torch"},
        r"layout: expected the words 'in' and 'out'.*got 'torch'",
    ),
    "layout of one side": (FLAT, {"target": ["query"], "layout": "in in"}, r"layout: expected .*, got 'in in'"),
    "no target": (FLAT, {}, r"find_sites: expected a target beside one layout for all, got none\.\nWrite target="),
    "a leaf without a layout": (
        FLAT,
        {"target": ["query", "dense"], "layout": {"query": "out in"}},
        r"pooler\.dense: expected a layout for each leaf of the target, got none\.\n.*whose names are query\.",
    ),
    "two layouts of one leaf": (
        FLAT,
        {"layout": {"query": "out in", "attention.query": "in out"}},
        r"query: expected one layout, got 'out in' and 'in out' \(of 'attention\.query'\)",
    ),
    "a name in the layout": (FLAT, {"layout": {"querry": "out in"}}, r"layout: expected names of leaves, got 'querry'"),
    "a stack without layer_axis": (
        STACKED,
        {"target": ["up"]},
        r"decoder\.layers\.up\.kernel: expected .* 2 axes.* 'out in', got the 3 axes \(4, 3, 6\)\.\n.*pass layer_axis",
    ),
    "axis": (
        STACKED,
        {"target": ["up"], "layer_axis": 3},
        r"expected layer_axis to be an axis of the shape \(4, 3, 6\), got 3",
    ),
    "vector": (FLAT, {"target": ["bias"]}, r"encoder\.layer\.0\.attention\.query\.bias: .*1 axes \(6,\)"),
}


@pytest.mark.parametrize(("tree", "asked", "message"), BAD.values(), ids=BAD)
def test_find_sites_rejects_invalid_arguments(tree, asked, message):
    with pytest.raises(SiteError, match=re.compile(message, re.DOTALL)):
        tnadapt_jax.find_sites(tree, **({"layout": "out in"} | asked))


@pytest.mark.parametrize(("layer_axis", "name"), [(0, "qkv"), (0, "decoder.qkv"), ({"decoder": 0}, "decoder.qkv")])
def test_the_name_of_a_stack_stands_for_its_layers_in_fused_and_blocks(layer_axis, name):
    tree = {"decoder": {"qkv": {"kernel": jnp.zeros((2, 4, 6))}, "up": {"kernel": jnp.zeros((2, 4, 8))}}}
    found = tnadapt_jax.find_sites(
        tree,
        target=["qkv", "up"],
        layout="linen",
        layer_axis=layer_axis,
        fused={name: {"q": 4, "k": 2}},
        blocks={name.replace("qkv", "up"): (2, 1)},
    )
    layer = {leaf.site.weight: leaf.index for leaf in found.entries}
    assert len(layer) == 4  # two layers of two weights
    parts = {(layer[s.weight], s.coordinates["kind"].removeprefix("decoder."), s.shape) for s in found.sites}
    kinds = [("q", (4, 4)), ("k", (2, 4)), ("up.0", (4, 4)), ("up.1", (4, 4))]
    assert parts == {(n, *kind) for n in range(2) for kind in kinds}


def test_a_stack_whose_name_ends_that_of_another_is_split_once():
    tree = {"qkv": jnp.zeros((2, 4, 6)), "other": {"qkv": jnp.zeros((2, 4, 6))}, "last": {"qkv": jnp.zeros((4, 6))}}
    layers = {"target": ["qkv"], "layout": "in out", "fused": {"qkv": ["q", "k"]}}
    found = tnadapt_jax.find_sites({name: tree[name] for name in ("qkv", "other")}, layer_axis=0, **layers)
    assert len(found.sites) == 8
    found = tnadapt_jax.find_sites(tree, layer_axis={"other": 0}, **layers | {"target": ["other.qkv", "last.qkv"]})
    assert len(found.sites) == 6


def test_a_name_that_no_stack_has_is_refused():
    with pytest.raises(SiteError, match="fused: expected names of the adapted weights, got 'kqv', which matches none"):
        tnadapt_jax.find_sites(
            {"qkv": jnp.zeros((2, 4, 6))}, target=["qkv"], layout="linen", layer_axis=0, fused={"kqv": ["q"]}
        )


@pytest.mark.parametrize(
    "weights",
    [
        {"a": {"b": jnp.ones((4, 4))}, "a.b": jnp.ones((4, 4))},
        {"a": {"b": {"kernel": jnp.ones((4, 4)), "weight": jnp.ones((4, 4))}}},
    ],
)
def test_two_leaves_of_one_name_are_refused(weights):
    """One update would go into both, or the other would be left out."""
    with pytest.raises(SiteError, match=r"^a\.b: expected one leaf of this name, got a\.b.*, a\.b.*"):
        tnadapt_jax.find_sites(weights, target=["a.b"], layout="in out")
    beside = weights | {"c": jnp.ones((4, 4))}
    assert len(tnadapt_jax.find_sites(beside, target=["c"], layout="in out").sites) == 1
