"""Weights split into several sites: the position and name of each block, and the update of the whole weight."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnadapt import (
    FormatError,
    Site,
    SiteError,
    apply,
    count,
    delta,
    families,
    from_json,
    grid,
    rank_bound,
    split_sites,
    to_json,
)
from tnadapt._hosts import parts
from tnadapt.binding import Block
from tnadapt.testing import random_params

QKV = Site("h.0.attn.c_attn", (12, 4), {"layer": 0, "kind": "attn.c_attn"})
UP, DOWN = (
    Site(f"h.0.mlp.{kind}", shape, {"kind": f"mlp.{kind}"}) for kind, shape in (("fc", (16, 4)), ("proj", (4, 16)))
)
EXPERTS = Site("h.0.experts.up", (3, 8, 4), {"kind": "experts.up"})


def kinds_and_places(sites):
    return [(site.path, site.coordinates["kind"], site.shape, site.rectangle) for site in sites]


def test_a_fused_weight_splits_into_equal_parts():
    q, k, v = split_sites([QKV], fused={"c_attn": ["q", "k", "v"]})
    assert kinds_and_places([q, v]) == [
        ("h.0.attn.c_attn[q]", "attn.q", (4, 4), (slice(0, 4), slice(0, 4))),
        ("h.0.attn.c_attn[v]", "attn.v", (4, 4), (slice(8, 12), slice(0, 4))),
    ]
    assert (k.weight, k.weight_shape, k.coordinates["layer"]) == ("h.0.attn.c_attn", (12, 4), 0)


def test_parts_may_differ_in_rows_or_be_left_out():
    """With grouped queries, keys and values have fewer rows."""
    parts = split_sites([QKV], fused={"attn.c_attn": {"q": 8, "k": 2, "v": 2}})
    assert [(site.shape, site.rectangle[0]) for site in parts] == [
        ((8, 4), slice(0, 8)),
        ((2, 4), slice(8, 10)),
        ((2, 4), slice(10, 12)),
    ]
    assert [site.path for site in split_sites([QKV], fused={"c_attn": ["q", None, "v"]})] == [
        "h.0.attn.c_attn[q]",
        "h.0.attn.c_attn[v]",
    ]


def test_blocks_are_numbered_row_by_row():
    parts = split_sites([UP, DOWN], blocks={"fc": (2, 2), "proj": (1, 2)})
    assert kinds_and_places(parts) == [
        ("h.0.mlp.fc[0]", "mlp.fc.0", (8, 2), (slice(0, 8), slice(0, 2))),
        ("h.0.mlp.fc[1]", "mlp.fc.1", (8, 2), (slice(0, 8), slice(2, 4))),
        ("h.0.mlp.fc[2]", "mlp.fc.2", (8, 2), (slice(8, 16), slice(0, 2))),
        ("h.0.mlp.fc[3]", "mlp.fc.3", (8, 2), (slice(8, 16), slice(2, 4))),
        ("h.0.mlp.proj[0]", "mlp.proj.0", (4, 8), (slice(0, 4), slice(0, 8))),
        ("h.0.mlp.proj[1]", "mlp.proj.1", (4, 8), (slice(0, 4), slice(8, 16))),
    ]


def test_numbers_of_blocks_and_rows_may_be_integers_of_numpy():
    two, three = np.int64(2), np.int64(3)
    assert split_sites([UP], blocks={"fc": (two, two)}) == split_sites([UP], blocks={"fc": (2, 2)})
    rows = {"q": np.int64(8), "k": two, "v": two}
    parts = split_sites([QKV], fused={"c_attn": rows}, blocks={"c_attn": (two, 1)})
    assert parts == split_sites([QKV], fused={"c_attn": {"q": 8, "k": 2, "v": 2}}, blocks={"c_attn": (2, 1)})
    assert grid(layers=three, kinds={"q": (two, three)}) == grid(layers=3, kinds={"q": (2, 3)})
    adapter = families.lora().bind(parts, rank=np.int64(1))
    assert from_json(to_json(adapter)) == adapter


def test_blocks_of_a_part_lie_inside_the_part():
    parts = split_sites([QKV], fused={"c_attn": ["q", "k", "v"]}, blocks={"c_attn": (2, 1)})
    assert [(site.path.removeprefix(QKV.path), site.rectangle[0]) for site in parts] == [
        ("[q][0]", slice(0, 2)),
        ("[q][1]", slice(2, 4)),
        ("[k][0]", slice(4, 6)),
        ("[k][1]", slice(6, 8)),
        ("[v][0]", slice(8, 10)),
        ("[v][1]", slice(10, 12)),
    ]


def test_every_expert_is_a_site_and_can_be_split_further():
    parts = split_sites([EXPERTS], experts=["experts.up"], fused={"up": ["gate", "up"]})
    assert len(parts) == 6
    last = parts[-1]
    assert (last.path, last.coordinates["expert"], last.coordinates["kind"]) == (
        "h.0.experts.up[2][up]",
        2,
        "experts.up",
    )
    assert last.rectangle == (2, slice(4, 8), slice(0, 4))
    assert np.zeros(last.weight_shape)[last.rectangle].shape == last.shape == (4, 4)


def test_every_site_is_repeated_once_per_task():
    parts = split_sites([QKV, UP], tasks=["seg", "depth"])
    assert [(site.weight, site.coordinates["task"], site.rectangle) for site in parts[:2]] == [
        ("h.0.attn.c_attn", "seg", (slice(0, 12), slice(0, 4))),
        ("h.0.attn.c_attn", "depth", (slice(0, 12), slice(0, 4))),
    ]
    adapter = families.mtlora_tasks().bind(parts, rank=2)
    assert len(adapter.weights["h.0.mlp.fc"]) == 2
    with pytest.raises(
        SiteError,
        match=r"h\.0\.mlp\.fc: expected .*whose sites serve several tasks\.\nAsk for one of h\.0\.mlp\.fc\[seg",
    ):
        delta(adapter, random_params(adapter, np.random.default_rng(0)), "h.0.mlp.fc")


def test_sites_are_unchanged_if_no_split_is_requested():
    assert split_sites([QKV, UP]) == (QKV, UP)
    assert UP.rectangle == (slice(0, 16), slice(0, 4))
    assert (UP.weight, UP.weight_shape) == (UP.path, UP.shape)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"fused": {"attn": ["q"]}},
            r"fused: expected names of the adapted weights, got 'attn', which matches none\.\nThe nearest names are c",
        ),
        ({"fused": {"c_attn": ["q", "k", "v", "o", "p"]}}, r"different names and 12 rows in total, got q: 2"),
        ({"fused": {"c_attn": {"q": 8, "k": 2}}}, r"rows in total, got q: 8, k: 2\.\nGive name -> rows"),
        ({"fused": {"c_attn": ["q", "q", "v"]}}, r"expected parts with different names and 12 rows in total"),
        ({"fused": {"c_attn": [None]}}, r"expected parts with different names and 12 rows in total"),
        ({"fused": {"c_attn": {"q": 12.0}}}, r"fused: rows of 'q': expected an integer of at least 1, got 12\.0"),
        ({"blocks": {"c_attn": (5, 1)}}, r"divides an axis of 12, got 5\.\nDivisors of 12: 1, 2, 3, 4, 6, 12"),
        ({"blocks": {"c_attn": (2,)}}, r"expected one number of blocks per axis of \(12, 4\), got \(2,\)"),
        ({"blocks": {"c_attn": (0, 1)}}, r"blocks along an axis: expected an integer of at least 1, got 0"),
        ({"experts": ["c_attn"]}, r"expected a weight with the axes \(experts, out, in\), got shape"),
        ({"tasks": ["a", ""]}, r"tasks: expected names that are not empty, got '' among them"),
    ],
    ids=str,
)
def test_an_invalid_split_is_rejected(words, message):
    with pytest.raises(SiteError, match=message):
        split_sites([QKV], **words)


def test_two_sites_must_not_update_the_same_entry():
    upper, over = (
        Site(f"w[{n}]", (8, 4), {"kind": str(n)}, Block("w", (12, 4), (start, 0))) for n, start in enumerate((0, 4))
    )
    with pytest.raises(
        SiteError, match=r"w\[0\]: expected sites of one weight that do not overlap, .*, got w\[1\], which updates"
    ):
        families.lora().bind([upper, over], rank=2)
    with pytest.raises(SiteError, match=r"w: expected one shape .*, got \(12, 4\) from w\[0\] and \(4, 4\) from w\."):
        families.lora().bind([upper, Site("w", (4, 4))], rank=2)


def test_the_update_of_a_weight_is_that_of_its_blocks():
    adapter = families.lotr().bind(split_sites([QKV], fused={"c_attn": ["q", None, "v"]}), rank=2)
    params = random_params(adapter, np.random.default_rng(0))
    whole = delta(adapter, params, "h.0.attn.c_attn")
    assert np.array_equal(whole[:4], delta(adapter, params, "h.0.attn.c_attn[q]"))
    assert not whole[4:8].any()
    x = np.random.default_rng(1).standard_normal((3, 4))
    assert np.allclose(apply(adapter, params, "h.0.attn.c_attn", x), x @ whole.T, rtol=0, atol=1e-12)


def test_a_weight_of_several_experts_cannot_be_applied_to_an_input():
    adapter = families.lora().bind(split_sites([EXPERTS], experts=["up"]), rank=2)
    params = random_params(adapter, np.random.default_rng(0))
    assert delta(adapter, params, EXPERTS.path).shape == (3, 8, 4)
    with pytest.raises(
        SiteError, match=r"h\.0\.experts\.up: expected a single weight, got several of shape \(3, 8, 4\)"
    ):
        apply(adapter, params, EXPERTS.path, np.ones((2, 4)))


def test_blocks_of_one_shape_share_a_network():
    """FacT: twelve blocks of 768 x 768 per layer of ViT-B, 1536 r + 144 r^2 (fact_tt.py @ 026e4f1)."""
    sites = grid(
        layers=12,
        kinds={**dict.fromkeys("qkvo", (768, 768)), "fc1": (3072, 768), "fc2": (768, 3072)},
        blocks={"fc1": (4, 1), "fc2": (1, 4)},
    )
    adapter = families.fact_tt().bind(sites, rank=16)
    assert (len(adapter.sites), len(adapter.groups), len(adapter.weights)) == (144, 1, 72)
    assert count(adapter).trainable == 61_440
    assert rank_bound(adapter, "layers.3.fc1[2]").rank == 16


def test_experts_can_be_a_site_mode():
    spec = families.lotr(over="layer expert")
    adapter = spec.bind(grid(layers=2, kinds={"up": (4, 8, 6)}, experts=["up"]), rank=2)
    (network,) = adapter.networks
    assert (network.sizes["layer"], network.sizes["expert"]) == (2, 4)
    assert count(adapter).trainable == 8 * 2 + 6 * 2 + 2 * 4 * 2 * 2


def test_blocks_are_saved_as_json_and_checked_when_read():
    adapter = families.lora().bind(
        split_sites([QKV, EXPERTS], experts=["up"], fused={"c_attn": ["q", "k", "v"]}), rank=2
    )
    text = to_json(adapter)
    assert from_json(text) == adapter
    for old, new, message in [
        ('"start":[4,0]', '"start":[40,0]', "expected a block inside the weight"),
        ('"start":[4,0]', '"start":[0,0]', "expected sites of one weight that do not overlap"),
        ('"start":[4,0]', '"begin":[4,0]', "unknown keys"),
        ('"weight":["h.",".attn.c_attn"]', '"weight":[1]', "pattern: expected a path of one or two strings"),
    ]:
        assert old in text
        with pytest.raises(FormatError, match=message):
            from_json(text.replace(old, new))


def test_overlap_is_found_even_if_no_axis_separates_the_blocks():
    def block(name, shape, start):
        return Site(name, shape, {"kind": name}, Block("w", (4, 4), start))

    around = [
        block("a", (1, 3), (0, 0)),
        block("b", (3, 1), (0, 3)),
        block("c", (1, 3), (3, 1)),
        block("d", (3, 1), (1, 0)),
    ]
    assert len(families.lora().bind([*around, block("e", (2, 2), (1, 1))], rank=1).sites) == 5
    with pytest.raises(SiteError, match="expected sites of one weight that do not overlap"):
        families.lora().bind([*around, block("e", (2, 2), (1, 2))], rank=1)


def spiral(count):
    """Strips that are cut off one at a time, in turn from the left and from the top."""
    side, boxes = 2 * count, []
    for number in range(count):
        top, left = number // 2, (number + 1) // 2
        boxes.append(((1, side - left), (top, left)) if number % 2 else ((side - top, 1), (top, left)))
    return boxes, side


def herringbone(side):
    """Dominoes, lying and standing, that no straight cut separates."""
    boxes = []
    for row in range(side):
        starts = range(row % 4 - 4, side, 4)
        boxes += [((1, 2), (row, at)) for at in starts if 0 <= at < side - 1]
        boxes += [((2, 1), (row, at + 3)) for at in starts if 0 <= at + 3 < side and row < side - 1]
    return boxes, side


def blocks_of(boxes, side):
    return [
        Site(f"w[{n}]", shape, {"kind": str(n)}, Block("w", (side, side), start))
        for n, (shape, start) in enumerate(boxes)
    ]


@pytest.mark.parametrize("boxes", [spiral(3000), herringbone(30)], ids=["spiral", "herringbone"])
def test_blocks_in_any_arrangement_are_compared_quickly_and_without_recursion(boxes):
    sites = blocks_of(*boxes)
    start = time.process_time()
    parts.check_parts("w", sites)
    (shape, at), side = boxes[0][len(sites) // 2], boxes[1]
    extra = Site("w[x]", shape, {"kind": "x"}, Block("w", (side, side), at))
    with pytest.raises(SiteError, match=r"do not overlap.*, got w\[x\], which updates"):
        parts.check_parts("w", [*sites, extra])
    assert time.process_time() - start < 3


def test_too_many_blocks_that_no_cut_separates_are_refused():
    sites = blocks_of(*herringbone(100))
    assert len(sites) > 4096
    with pytest.raises(SiteError, match=r"w: expected at most 4,096 blocks that no straight cut separates, got "):
        parts.check_parts("w", sites)


@given(st.data())
def test_an_overlap_is_found_if_and_only_if_there_is_one(data):
    whole = data.draw(st.lists(st.integers(2, 5), min_size=2, max_size=3))
    boxes = []
    for _ in range(data.draw(st.integers(2, 7))):
        start = tuple(data.draw(st.integers(0, size - 1)) for size in whole)
        boxes.append((tuple(data.draw(st.integers(1, s - at)) for s, at in zip(whole, start, strict=True)), start))
    filled = np.zeros(whole, dtype=int)
    for shape, start in boxes:
        filled[tuple(slice(at, at + size) for at, size in zip(start, shape, strict=True))] += 1
    sites = [Site(f"w[{n}]", shape, {}, Block("w", tuple(whole), start)) for n, (shape, start) in enumerate(boxes)]
    try:
        parts.check_parts("w", sites)
    except SiteError:
        assert filled.max() > 1
    else:
        assert filled.max() == 1


def test_ten_thousand_blocks_are_checked_without_comparing_pairs(monkeypatch):
    """The blocks of a grid are separated axis by axis; comparing all pairs would take 50 million comparisons."""
    sites = split_sites([Site("w", (100, 100), {"kind": "w"})], blocks={"w": (100, 100)})
    seen = []
    overlap = parts._overlap
    monkeypatch.setattr(parts, "_overlap", lambda *sides: seen.append(0) or overlap(*sides))
    parts.check_parts("w", sites)
    assert len(sites) == 10_000
    assert not seen
