"""Files that tnadapt 0.1.0 wrote before its folders and initializers got their present names still load.

They were written at commit 0de8838 with params from numpy's default_rng(3), for the adapters in tests/table.py at that
time. deltas.json has sum |dW| and sum n dW_n of the first six sites of each, computed by `delta` of that commit.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tnadapt import delta, from_json, load, save, to_json

HERE = Path(__file__).parent / "format1"
DELTAS = json.loads((HERE / "deltas.json").read_text())


@pytest.mark.parametrize("name", DELTAS)
def test_an_old_file_loads_with_the_same_updates(name):
    adapter, params = load(HERE / f"{name}.safetensors")
    for path, (total, weighted) in DELTAS[name].items():
        update = delta(adapter, params, path)
        numbers = np.arange(update.size).reshape(update.shape)
        scale = np.abs(update * numbers).sum()
        assert np.abs(update).sum() == pytest.approx(total, rel=1e-12)
        assert (update * numbers).sum() == pytest.approx(weighted, abs=1e-12 * scale)


@pytest.mark.parametrize("name", DELTAS)
def test_an_old_file_is_saved_again_with_the_same_numbers_and_text(name, tmp_path):
    adapter, params = load(HERE / f"{name}.safetensors")
    save(adapter, params, tmp_path / "again.safetensors")
    again, found = load(tmp_path / "again.safetensors")
    assert (again, to_json(again)) == (adapter, to_json(adapter))
    assert from_json(to_json(adapter)) == adapter
    assert all(np.array_equal(found[key], value) for key, value in params.items())


def test_every_file_has_recorded_updates():
    assert {path.stem for path in HERE.glob("*.safetensors")} == DELTAS.keys()
