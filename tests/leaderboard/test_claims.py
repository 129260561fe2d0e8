"""What docs/explanation/learning_rate.md says of the sweeps follows from the records in results/."""

import math
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("modules")
RESULTS = Path(__file__).parents[2] / "results"


def losses(task):
    """Return method -> rate -> mean validation loss over the seeds of the search; infinite if one diverged."""
    from records import read_all

    found = {}
    for one in read_all(RESULTS):
        if one.key.task == task and one.key.phase == "search":
            rates = found.setdefault(one.key.method, {})
            rates.setdefault(one.key.rate, []).append(math.inf if one.diverged else one.loss)
    return {name: {rate: sum(some) / len(some) for rate, some in rates.items()} for name, rates in found.items()}


def test_one_rate_trains_all_families_of_the_digits():
    table = losses("digits")
    families = [name for name in table if f"{name} unit" in table]
    assert len(families) == 12
    best = {name: min(rates, key=rates.get) for name, rates in table.items()}
    plain, balanced = ([math.log2(best[name + suffix]) for name in families] for suffix in ("", " unit"))
    assert (min(plain), max(plain)) == (-9, -3)
    assert sorted(balanced) == [-5.0] * 8 + [-4.0] * 3 + [-3.0]
    assert best["VeRA r64 unit"] == 2.0**-3
    at = {suffix: best[f"LoRA r8{suffix}"] for suffix in ("", " unit")}
    worse = {
        suffix: sorted(table[name + suffix][rate] / min(table[name + suffix].values()) for name in families)
        for suffix, rate in at.items()
    }
    assert worse[" unit"][-1] == pytest.approx(1.11, abs=0.005)
    assert worse[""][-1] == math.inf == table["RandLoRA r16"][at[""]]
    assert worse[""][-2] == pytest.approx(12.5, abs=0.05)
    lower = {name.split()[0] for name in families if min(table[name].values()) < min(table[f"{name} unit"].values())}
    assert lower == {"LoTR", "MetaTT", "RandLoRA", "TT-LoRA", "VeRA", "TeRA"}
    assert min(table["LoTR r16 unit"].values()) == pytest.approx(0.61, abs=0.005)
    assert min(table["LoTR r16"].values()) == pytest.approx(0.41, abs=0.005)


def test_one_rate_trains_three_families_on_a_language_model():
    table = losses("family_relationships")
    for name, power in (("LoRA r8 unit", -6), ("LoTR r16 unit", -5), ("MetaTT r16 unit", -6)):
        assert min(table[name], key=table[name].get) == 2.0**power
        assert table[name][2.0**-6] < 1.06 * min(table[name].values())
    plain = table["LoRA r8"]
    assert max(plain[2.0**-8], plain[2.0**-7]) < 1.01 * min(*plain.values(), *table["LoRA r8 unit"].values())


SAID = {  # method: the power of its best rate at its paper's scale, the loss there, and its best loss under unit
    "LoRA r8": (-7, 0.483, 0.477),
    "LoTR r16": (-8, 0.575, 0.523),
    "MetaTT r16": (-7, 0.489, 0.507),
    "FacT-TT r16": (-8, 0.540, 0.505),
    "LoRTA r32": (-4, 0.510, 0.531),
    "VeRA r64": (-4, 0.541, 0.555),
}


def test_one_rate_trains_six_families_on_an_encoder():
    table = losses("sentences")
    best = {name: min(rates, key=rates.get) for name, rates in table.items() if "kappa" not in name}
    assert best.keys() == {name + suffix for name in SAID for suffix in ("", " unit")}
    for name, (power, paper, unit) in SAID.items():
        assert best[name] == 2.0**power
        found = [min(table[name + suffix].values()) for suffix in ("", " unit")]
        assert found == pytest.approx([paper, unit], abs=0.0005)
    balanced = {name: rate for name, rate in best.items() if name.endswith(" unit")}
    assert sorted(balanced.values()) == [2.0**-6] * 5 + [2.0**-5]
    assert balanced["VeRA r64 unit"] == 2.0**-5
    assert all(table[name][2.0**-6] < 1.02 * min(table[name].values()) for name in balanced)
    assert all(min(table[name]) < rate < max(table[name]) for name, rate in balanced.items())  # each was tried around


def test_6_is_better_than_a_quarter_and_four_times_of_it_on_an_encoder():
    table = losses("sentences")
    for name, said in (("LoRA r8 unit", (0.498, 0.477, 0.534)), ("LoTR r16 unit", (0.565, 0.523, 0.686))):
        found = [table[name + suffix][2.0**-6] for suffix in (" kappa 1.5", "", " kappa 24")]
        assert found == pytest.approx(said, abs=0.0005)
        assert min(found) == found[1]


def test_the_page_is_that_of_the_records(tmp_path):
    """Draw it again with `python benchmarks/leaderboard --page`."""
    from page import write_page
    from records import read_all

    write_page(read_all(RESULTS), tmp_path)
    page = Path(__file__).parents[2] / "docs" / "evidence" / "leaderboard.md"
    assert (tmp_path / "leaderboard.md").read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
