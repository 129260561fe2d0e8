"""Reports: every figure equals that of the function it comes from, and all output formats agree."""

import json

import pytest

from tests.table import places, required_of
from tests.thorough import IS_THOROUGH
from tnadapt import (
    AdapterSpec,
    PlanError,
    Site,
    count,
    degrees_of_freedom,
    families,
    generic_rank,
    grid,
    plan,
    rank_bound,
    raw,
    report,
    step_size,
    trainable,
    zeros,
)
from tnadapt._language import unknown_starts
from tnadapt._report import LIMIT
from tnadapt.binding import file_size

KINDS = {"q": (24, 16), "v": (24, 16), "up": (32, 24)}
SITES = grid(layers=3, kinds=KINDS)
BERT = grid(layers=12, kinds={"query": (768, 768), "value": (768, 768)})


@pytest.mark.parametrize("name", families.__all__ if IS_THOROUGH else families.__all__[::4])
def test_every_figure_equals_that_of_the_function_it_comes_from(name):
    spec = getattr(families, name)()
    sizes = dict.fromkeys(required_of(spec), 8)
    adapter = spec.bind(places(spec, layers=3, kinds=KINDS), rank=2 if spec.free_bonds else None, sizes=sizes)
    found = report(adapter, tokens=64)
    is_mapped = any(factor.map for factor in spec.arrays.values())
    assert found.count == count(adapter)
    assert found.file_size == file_size(adapter)
    assert found.bytes == {
        d: s * found.count.trainable for d, s in {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}.items()
    }
    assert found.frozen_bytes["bfloat16"] == 2 * found.count.frozen
    assert sum(net.sites for net in found.networks) == len(adapter.sites)
    if not adapter.joined:  # each group counts what it shares with the others
        assert sum(len(net.groups) * net.trainable for net in found.networks) == found.count.trainable
    known = {group.name: group for group in adapter.groups}
    for net in found.networks:
        group = known[net.groups[0]]
        order = plan(group.network, tokens=64)
        assert net.rank == rank_bound(adapter, group.sites[0])
        assert net.generic_rank == generic_rank(adapter, group.sites[0])
        assert net.freedom == (None if is_mapped else degrees_of_freedom(adapter, group))
        assert net.full_rank == (net.rank.rank >= min(net.weight))
        assert net.forward_flops * 64 == pytest.approx(order.forward_flops)
        assert net.backward_flops * 64 == pytest.approx(order.backward_flops)
        assert net.saved_bytes * 64 == pytest.approx(4 * order.saved_elements)
        assert net.step == (None if unknown_starts(spec) else step_size(adapter)[group.name])
    if is_mapped or (adapter.joined and found.count.trainable > LIMIT):
        assert found.freedom is None
    else:
        assert found.freedom == degrees_of_freedom(adapter)
    assert found.saved_bytes == pytest.approx(sum(net.sites * net.saved_bytes for net in found.networks))


def test_the_figures_of_lora_on_roberta_match_a_calculation_by_hand():
    found = report(families.lora().bind(BERT, rank=8))
    assert found.count.trainable == 294_912
    assert found.freedom.gauge == 24 * 64
    assert found.forward_share == 2 * 8 / 768  # 2 T d r twice, over 2 T d d
    assert found.backward_share == 2 * found.forward_share
    assert found.first_gradients == ("B",)
    (net,) = found.networks
    assert (net.sites, len(net.groups), net.weight, net.full_rank) == (24, 24, (768, 768), False)
    assert net.saved_bytes == 4 * (768 + 8)  # x and x A


def test_all_output_formats_agree():
    found = report(families.vera().bind(SITES, rank=2))
    data, text, marks = found.to_dict(), str(found), found.to_markdown()
    assert json.loads(json.dumps(data)) == json.loads(json.dumps(found.to_dict()))
    assert data["trainable"] == found.count.trainable == sum(data["by_group"].values())
    assert data["networks"][0]["rank"]["modes"] == ("r",)
    assert {row["factor"] for row in data["factors"]} == set("AbdB")
    for form in (text, marks):
        assert f"{found.count.trainable:,} = r + out" in form
        assert "frozen" in form
        assert "<= 2 (cut r)" in form
        assert f"{found.file_size:,} bytes" in form
    assert all(line.count("|") >= 3 for line in marks.splitlines() if line)


def test_groups_that_lack_different_sites_have_separate_rows():
    """Their networks are equal, but their degrees of freedom differ: sites share a row or a column in some only."""
    sites = [
        Site(f"{task}.{layer}.{kind}", (3, 3), {"task": task, "layer": layer, "kind": kind})
        for task, places in {
            "one": [(0, "a"), (0, "b"), (1, "a")],
            "two": [(0, "a"), (1, "b"), (1, "a")],
            "three": [(0, "a"), (1, "b"), (2, "c")],
            "four": [(0, "a"), (1, "b"), (2, "c"), (2, "a")],
        }.items()
        for layer, kind in places
    ]
    factors = {"A": trainable("out layer"), "B": trainable("in kind", init=zeros())}
    spec = AdapterSpec(name="own", weight="out in", over="layer kind", factors=factors, scale=raw())
    adapter = spec.bind(sites)
    found = report(adapter)
    assert len(found.networks) == 4 > len(set(adapter.networks)) == 2
    assert [net.freedom for net in found.networks] == [degrees_of_freedom(adapter, group) for group in adapter.groups]
    assert found.freedom == degrees_of_freedom(adapter)
    assert found.networks[2].freedom.gauge == 3  # three sites that share nothing
    assert found.networks[3].freedom.gauge == 2


def test_equal_factors_of_several_groups_share_a_row():
    rows = report(families.lora().bind(SITES, rank=2)).factors()
    assert rows == [
        ["factor", "kind", "modes", "shape", "entries"],
        ["A", "trainable", "r in", "2 x 16", "32 x 6"],
        ["B", "trainable", "out r", "24 x 2", "48 x 6"],
        ["A", "trainable", "r in", "2 x 24", "48 x 3"],
        ["B", "trainable", "out r", "32 x 2", "64 x 3"],
    ]


def test_figures_that_are_too_expensive_are_shown_as_unknown():
    found = report(families.loha().bind(BERT, rank=8), limit=50)
    assert found.freedom is None
    assert found.networks[0].freedom is None
    assert found.to_dict()["degrees_of_freedom"] is None
    assert "degrees of freedom  -" in str(found)
    wide = report(families.lora().bind(grid(layers=1, kinds={"q": (4096, 4096)}), rank=2048), limit=50)
    assert wide.networks[0].generic_rank is None
    assert "  -  " in str(wide)


def test_progress_is_reported():
    told = []
    report(families.lora().bind(SITES, rank=2), tell=told.append)
    assert told == [f"lora: ranks and degrees of freedom of 0.{kind}" for kind in ("q", "up")]


def test_zero_tokens_are_rejected():
    with pytest.raises(PlanError, match="expected tokens to be an integer of at least 1"):
        report(families.lora().bind(SITES, rank=2), tokens=0)


def test_the_report_counts_the_frozen_entries_that_the_file_stores():
    """PiSSA reads its starting values from the host, one for each trainable entry, and the file stores them."""
    assert "frozen              408, of which 408 are in the file" in str(report(families.pissa().bind(SITES, rank=1)))
    assert "regenerated from the seed" in str(report(families.vera().bind(SITES, rank=1)))


def test_the_first_step_is_a_multiple_of_that_of_lora():
    """LoTR's A and B have the deviation 1: with alpha / p it moves dW by sqrt(p q in) / p where LoRA has alpha / p."""
    head, *rows = report(families.lotr().bind(BERT, rank=8)).rows()
    assert [row[head.index("step")] for row in rows] == ["17"]
    text = str(report(families.lotr().bind(BERT, rank=8)))
    assert "first step          17 of LoRA's (rank 8, alpha 8); an entry moves by lr x |scale| sqrt(p q)" in text
    assert "first step          1 of LoRA's" in str(report(families.lora(alpha=8).bind(BERT, rank=8)))
    data = report(families.lora(alpha=8).bind(BERT, rank=8)).to_dict()["networks"][0]["step"]
    assert data["of_lora"] == pytest.approx(1, rel=0.01)
    assert json.loads(json.dumps(data)) == data


def test_the_first_step_is_unknown_where_a_start_is_read():
    found = report(families.pissa().bind(SITES, rank=1))
    assert found.steps == ()
    assert "first step          -: starting values are read from the host's weights" in str(found)
    assert found.to_dict()["networks"][0]["step"] is None
