"""The code in the README runs as written, and its figures are correct."""

import re
from pathlib import Path

import pytest

import tnadapt

README = Path(__file__).parents[2] / "README.md"
CODE = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_quickstart_trains_saves_and_merges(tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # tests run in parallel
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    room = {}
    exec(CODE[0], room)
    loss = torch.nn.functional.mse_loss(room["model"](room["x"]), room["y"])
    assert loss < 0.5 * room["y"].square().mean()  # the loss of the prediction 0
    assert (tmp_path / "lotr.safetensors").exists()
    assert "trainable params: 1,152" in capsys.readouterr().out


def test_the_spec_in_the_readme_is_valid_and_binds_to_a_grid():
    room = {}
    exec(CODE[1], room)
    sites = tnadapt.grid(layers=3, kinds={"q": (6, 5), "v": (6, 5)})
    adapter = room["mine"].bind(sites, rank=2, seed=0)
    assert tnadapt.count(adapter).trainable == 3 * 2 * 2 + 6 * 2
    assert tnadapt.count(adapter).frozen == 2 * 5


ROWS = re.findall(r"\| `(\w+)` \|.*?\| ([\d,]+) \| arXiv", README.read_text())


@pytest.mark.parametrize(("family", "stated"), ROWS)
def test_the_table_has_the_right_counts(family, stated):
    sites = tnadapt.grid(layers=12, kinds={"query": (768, 768), "value": (768, 768)})
    sizes = {"head": 12} if family == "lorta" else None
    adapter = getattr(tnadapt.families, family)().bind(sites, rank=8, sizes=sizes)
    assert tnadapt.count(adapter).trainable == int(stated.replace(",", ""))


def test_the_table_lists_eight_families_and_links_to_the_others():
    named = {family for family, _ in ROWS}
    assert len(named) == len(ROWS) == 8
    assert named < set(tnadapt.families.__all__)
    link = re.escape("[all of them](docs/reference/families.md)")
    (stated,) = re.findall(rf"the first eight of (\d+); {link}", README.read_text())
    assert int(stated) == len(tnadapt.families.__all__)
