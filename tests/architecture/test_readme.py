"""The code in the README runs as written, and its figures are correct."""

import json
import math
import re
from collections import defaultdict
from pathlib import Path

import pytest

import tnadapt

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CODE = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


LOTR, TORCH, JAX, OWN, RUN = CODE


def test_the_six_lines_are_the_built_in_family():
    room = {}
    exec(LOTR, room)
    assert room["lotr"] == tnadapt.families.lotr()


@pytest.fixture
def torch(tmp_path, monkeypatch):
    """Torch as a new user has it, in an empty folder."""
    found = pytest.importorskip("torch")
    found.set_num_threads(1)  # tests run in parallel
    found.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    return found


def test_the_quickstart_trains_saves_and_merges(torch, tmp_path, capsys):
    room = {}
    exec(TORCH, room)
    loss = torch.nn.functional.mse_loss(room["model"](room["x"]), room["y"])
    assert loss < 0.5 * room["y"].square().mean()  # the loss of the prediction 0
    assert (tmp_path / "lotr.safetensors").exists()
    out = capsys.readouterr().out
    assert "trainable params: 1,152" in out
    first, last = losses_in(out)
    assert first > 2 * last
    assert abs(last - loss.item()) < 0.25 * last


def losses_in(out):
    """Return the first and the last loss that a quickstart prints."""
    steps, losses = zip(*re.findall(r"^step (\d+): loss ([\d.]+)$", out, flags=re.MULTILINE), strict=True)
    assert steps == ("0", "199")
    return map(float, losses)


def test_the_quickstart_in_jax_trains_and_saves_a_file_that_torch_reads(tmp_path, monkeypatch, capsys):
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("jax")
    import numpy as np

    import tnadapt_torch

    monkeypatch.chdir(tmp_path)
    room = {}
    exec(JAX, room)
    assert room["value"] < 0.25 * (room["y"] ** 2).mean()
    first, last = losses_in(capsys.readouterr().out)
    assert first > 4 * last
    assert abs(last - room["value"]) <= 0.005
    model = torch.nn.ModuleDict({name: torch.nn.Linear(64, 64, bias=False) for name in room["weights"]})
    for name, weight in room["weights"].items():
        model[name].weight.data = torch.tensor(np.asarray(weight)).T
    tnadapt_torch.load(model, "lotr.safetensors")
    params = room["params"] | {"trainable": room["trainable"]}
    expected = np.asarray(room["adapted"](params, room["weights"], room["x"]))
    with torch.no_grad():
        found = model["second"](torch.tanh(model["first"](torch.tensor(np.asarray(room["x"])))))
    np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())


def test_the_spec_in_the_readme_is_valid_and_binds_to_a_grid():
    room = {}
    exec(OWN, room)
    sites = tnadapt.grid(layers=3, kinds={"q": (6, 5), "v": (6, 5)})
    adapter = room["mine"].bind(sites, rank=2, seed=0)
    assert tnadapt.count(adapter).trainable == 3 * 2 * 2 + 6 * 2
    assert tnadapt.count(adapter).frozen == 2 * 5


def test_the_own_adapter_learns_and_is_loaded_and_exported(torch, tmp_path, capsys):
    room = {}
    exec(OWN, room)
    exec(RUN, room)
    first, last = losses_in(capsys.readouterr().out)
    assert first > 4 * last
    assert (tmp_path / "mine_as_lora" / "adapter_config.json").exists()


def test_as_many_properties_are_stated_as_there_are():
    pytest.importorskip("hypothesis")
    from tnadapt.testing import LAWS

    assert re.findall(r"tests (\d+) properties", README.read_text()) == [str(len(LAWS))]


def claim(words):
    """Return the second cell of the table's row that begins with these words."""
    (cell,) = re.findall(rf"^\| \*\*{words}\*\* \| (.*) \|$", README.read_text(), flags=re.MULTILINE)
    return cell


def test_the_sizes_of_files_are_those_of_the_records():
    found = {}
    for path in sorted((ROOT / "results").glob("family_relationships--*--final.json")):
        one = json.loads(path.read_text())
        found.setdefault(one["key"]["method"].split()[0], []).append((one["bytes"], one["test"]))
    sizes = {name: {round(size / 1000) for size, _ in some} for name, some in found.items()}
    stated = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) KB", claim("small files")))
    assert sizes == {name: {size} for name, size in zip(("LoRA", "LoTR", "MetaTT"), stated, strict=True)}
    right = {name: sum(score for _, score in some) / len(some) for name, some in found.items()}
    assert min(right, key=right.get) == "LoRA"


def test_the_times_against_peft_are_those_of_the_record():
    record = json.loads((ROOT / "results" / "speed" / "regimes-cpu.json").read_text())
    (rows,) = (table["rows"] for table in record["tables"] if table["title"].startswith("many tokens, eager"))
    found = {row["method"]: f"{row['/ PEFT']:.2f}" for row in rows if row["/ PEFT"] != "-"}
    stated = dict(re.findall(r"(\w+)=([\d.]+)", re.sub(r"([\d.]+)[a-zA-Z ]* with (\w+)", r"\2=\1", claim("speed"))))
    assert stated == found


def test_the_spread_of_the_best_rates_is_that_of_the_records():
    losses = defaultdict(lambda: defaultdict(list))
    for path in (ROOT / "results").glob("digits--*--search.json"):
        one = json.loads(path.read_text())
        losses[one["key"]["method"]][one["key"]["rate"]].append(math.inf if one["diverged"] else one["loss"])
    best = {name: min(rates, key=lambda rate: sum(rates[rate])) for name, rates in losses.items()}
    plain, balanced = ([best[name + tail] for name in best if f"{name} unit" in best] for tail in ("", " unit"))
    spreads = [round(max(rates) / min(rates)) for rates in (plain, balanced)]
    assert [int(number) for number in re.findall(r"by (\d+) times", claim("one learning rate"))] == spreads
    assert (len(plain), balanced.count(2.0**-5)) == (12, 8)


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
