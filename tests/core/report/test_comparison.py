"""Comparisons: one row for each adapter, from its report."""

from tnadapt import compare, count, families, grid, unit

KINDS = {"q": (24, 16), "v": (24, 16), "up": (32, 24)}
SITES = grid(layers=3, kinds=KINDS)


def test_a_comparison_has_a_row_for_each_adapter():
    adapters = [getattr(families, name)().bind(SITES, rank=2) for name in ("lora", "lotr", "tera")]
    found = compare(adapters, tokens=64)
    assert [one.adapter for one in found.reports] == adapters
    assert [row["spec"] for row in found.to_dict()] == ["lora", "lotr", "tera"]
    head, *rows = found.rows()
    assert len(rows) == 3 == len(str(found).splitlines()) - 1 == len(found.to_markdown().splitlines()) - 2
    assert rows[0][head.index("trains")] == f"{count(adapters[0]).trainable:,}"
    assert rows[1][head.index("rank given")] == "2"
    assert "p=2 q=3" in str(compare([families.lotr().bind(SITES, rank={"p": 2, "q": 3})]))


def test_the_first_steps_stand_side_by_side():
    """Two widths give LoTR two steps; under unit all are the same."""
    adapters = [getattr(families, name)().bind(SITES, rank=2) for name in ("lora", "lotr", "pissa")]
    adapters += [families.lotr().bind(SITES, rank=2, scale=unit(1.633))]
    head, *rows = compare(adapters, tokens=64).rows()
    assert [row[head.index("step")] for row in rows] == ["2", "2.5 to 3.1", "-", "1"]
