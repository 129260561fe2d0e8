"""The report: every figure against the piece that it comes from, and forms that say the same."""

import json

import numpy as np
import pytest

from tests.table import REPRESENTATIVES, places
from tnadapt import (
    AdapterSpec,
    FormatError,
    PlanError,
    Site,
    SiteError,
    compare,
    count,
    degrees_of_freedom,
    families,
    fit_rank,
    frozen,
    generic_rank,
    grid,
    plan,
    rank_bound,
    raw,
    report,
    save,
    trainable,
    zeros,
)
from tnadapt.binding import file_size
from tnadapt.testing import start_params

KINDS = {"q": (24, 16), "v": (24, 16), "up": (32, 24)}
SITES = grid(layers=3, kinds=KINDS)
BERT = grid(layers=12, kinds={"query": (768, 768), "value": (768, 768)})


@pytest.mark.parametrize("name", families.__all__)
def test_every_figure_is_that_of_the_function_it_comes_from(name):
    spec = getattr(families, name)()
    sizes = dict.fromkeys(spec.given.split(), 8)
    adapter = spec.bind(places(spec, layers=3, kinds=KINDS), rank=2, sizes=sizes)
    found = report(adapter, tokens=64)
    is_mapped = any(factor.map for factor in spec.factors.values())
    assert found.count == count(adapter)
    assert found.file_size == file_size(adapter)
    assert found.bytes == {
        d: s * found.count.trainable for d, s in {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}.items()
    }
    assert found.frozen_bytes["bfloat16"] == 2 * found.count.frozen
    assert sum(net.sites for net in found.networks) == len(adapter.sites)
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
    assert found.freedom == (None if is_mapped else degrees_of_freedom(adapter))
    assert found.saved_bytes == pytest.approx(sum(net.sites * net.saved_bytes for net in found.networks))


def test_lora_at_roberta_by_hand():
    found = report(families.lora().bind(BERT, rank=8))
    assert found.count.trainable == 294_912
    assert found.freedom.gauge == 24 * 64
    assert found.forward_share == 2 * 8 / 768  # 2 T d r twice, over 2 T d d
    assert found.backward_share == 2 * found.forward_share
    assert found.first_gradients == ("B",)
    (net,) = found.networks
    assert (net.sites, len(net.groups), net.weight, net.full_rank) == (24, 24, (768, 768), False)
    assert net.saved_bytes == 4 * (768 + 8)  # x and x A


def test_the_forms_say_the_same():
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


def test_groups_with_different_holes_have_separate_rows():
    """Their networks are equal, their degrees of freedom are not: two sites that share a column, or that do not."""
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


def test_the_factors_are_gathered_over_groups():
    rows = report(families.lora().bind(SITES, rank=2)).factors()
    assert rows == [
        ["factor", "kind", "modes", "shape", "entries"],
        ["A", "trainable", "r in", "2 x 16", "32 x 6"],
        ["B", "trainable", "out r", "24 x 2", "48 x 6"],
        ["A", "trainable", "r in", "2 x 24", "48 x 3"],
        ["B", "trainable", "out r", "32 x 2", "64 x 3"],
    ]


def test_figures_that_take_too_much_work_are_left_out_and_marked():
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


def test_zero_tokens_are_refused():
    with pytest.raises(PlanError, match="expected tokens to be an integer of at least 1"):
        report(families.lora().bind(SITES, rank=2), tokens=0)


def test_a_comparison_has_a_row_for_each_adapter():
    adapters = [getattr(families, name)().bind(SITES, rank=2) for name in ("lora", "lotr", "tera")]
    found = compare(adapters, tokens=64)
    assert [one.adapter for one in found.reports] == adapters
    assert [row["spec"] for row in found.to_dict()] == ["lora", "lotr", "tera"]
    head, *rows = found.rows()
    assert len(rows) == 3 == len(str(found).splitlines()) - 1 == len(found.to_markdown().splitlines()) - 2
    assert rows[0][head.index("trains")] == f"{count(adapters[0]).trainable:,}"
    assert rows[1][head.index("rank asked")] == "2"
    assert "p=2 q=3" in str(compare([families.lotr().bind(SITES, rank={"p": 2, "q": 3})]))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in families.__all__]
    + [(name, dtype) for name in REPRESENTATIVES for dtype in ("float64", "float16")],
)
def test_the_size_of_the_file_is_exact(name, dtype, tmp_path):
    spec = getattr(families, name)()
    adapter = spec.bind(places(spec, layers=3, kinds=KINDS), rank=2, sizes=dict.fromkeys(spec.given.split(), 8), seed=3)
    params = start_params(adapter)
    stored = {key: value.astype(dtype) for key, value in params.items() if adapter.slots[key].is_stored}
    save(adapter, stored, tmp_path / "x.safetensors")
    assert file_size(adapter, dtype=dtype) == (tmp_path / "x.safetensors").stat().st_size


def test_a_dtype_that_is_not_stored_has_no_size():
    with pytest.raises(FormatError, match=r"dtype must be one of float16, float32, float64.\nHowever, it is 'int8'"):
        file_size(families.lora().bind(SITES, rank=2), dtype="int8")


@pytest.mark.parametrize("name", [name for name in families.__all__ if getattr(families, name)().bonds])
@pytest.mark.parametrize("budget", [3_000, 20_000, 10**7])
def test_the_fitted_rank_is_the_largest_within_the_budget(name, budget):
    spec = getattr(families, name)()
    sites = places(spec, layers=3, kinds=KINDS)
    sizes = dict.fromkeys(spec.given.split(), 8)
    rank = fit_rank(spec, sites, trainable=budget, sizes=sizes)

    def bound(rank):
        return spec.bind(sites, rank=rank, sizes=sizes, overparametrized=True)

    found = count(bound(rank)).trainable
    assert found <= budget
    more = count(bound(rank + 1)).trainable
    assert more > budget or rank == 32 or more == found == count(bound(32)).trainable
    if rank > 1:
        assert count(bound(rank - 1)).trainable < found


def test_the_report_names_frozen_numbers_in_the_file():
    """The starts of PiSSA are read from the host, as many numbers as are trained."""
    assert "frozen              408, of which 408 are in the file" in str(report(families.pissa().bind(SITES, rank=1)))
    assert "drawn again from the seed" in str(report(families.vera().bind(SITES, rank=1)))


def test_a_budget_that_is_too_small_and_a_spec_without_rank():
    with pytest.raises(
        SiteError, match=r"lora: expected a budget of at least 408 trainable .* at these 9 sites, got 407\.\nRaise it"
    ):
        fit_rank(families.lora(), SITES, trainable=407)
    assert fit_rank(families.lora(), SITES, trainable=408) == 1
    with pytest.raises(SiteError, match="expected a spec with a bond whose size is free, got none"):
        fit_rank(families.lokr(low_rank=False), SITES, trainable=10**6)


def test_a_rank_without_trainable_numbers_is_as_large_as_possible():
    factors = {"A": frozen("out r"), "B": frozen("r in"), "s": trainable("", init=zeros())}
    spec = AdapterSpec(name="free", weight="out in", factors=factors, scale=raw())
    assert fit_rank(spec, SITES[:1], trainable=1) == 24


@pytest.mark.parametrize("budget", [0, -1, 2.5, float("nan"), "many", None])
def test_a_budget_is_a_whole_number(budget):
    with pytest.raises(
        SiteError, match=r"lora: the budget of trainable numbers: must be an integer of at least 1, got"
    ):
        fit_rank(families.lora(), SITES, trainable=budget)


def test_a_fit_keeps_the_sizes_that_are_given():
    assert fit_rank(families.lorta(), SITES, trainable=2_000, sizes={"head": 8}) == max(
        rank
        for rank in range(1, 33)
        if count(families.lorta().bind(SITES, rank=rank, sizes={"head": 8})).trainable <= 2_000
    )
    assert np.isfinite(report(families.lorta().bind(SITES, rank=2, sizes={"head": 8})).forward_share)
