"""The folder that PEFT loads as a LoRA: what is in it, and that it is there whole or not at all."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.table import FAMILIES
from tnadapt import FormatError, PlanError, Site, SiteError, delta, families, grid, read_peft, save_as_lora
from tnadapt.binding import Written
from tnadapt.testing import random_params

KINDS = {"q": (12, 8), "up": (16, 12)}
PREFIX = "base_model.model."


def trained(spec, rank=2, sites=None, **words):
    adapter = spec.bind(sites or grid(layers=2, kinds=KINDS), rank=rank, **words)
    return adapter, random_params(adapter, np.random.default_rng(0))


def config_in(folder):
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize("name", ["lotr", "lorta", "vera", "fact_tt", "loha", "tt_lora centered", "tlora"])
def test_what_is_written_is_the_update(name, tmp_path):
    case = FAMILIES[name]
    adapter = case.bind(layers=2, kinds=KINDS, seed=1)
    params = random_params(adapter, np.random.default_rng(0))
    written = save_as_lora(adapter, params, tmp_path / "lora", rank=99)
    assert {error for _, error in written.values()} == {0.0}
    again = read_peft(tmp_path / "lora")
    for site in adapter.sites:
        update = delta(adapter, params, site)
        np.testing.assert_allclose(
            delta(again.adapter, again.params, site.path), update, rtol=0, atol=1e-5 * abs(update).max()
        )


def test_ranks_and_scales_that_differ_are_told_by_patterns(tmp_path):
    """The bond p is cut to the out axis of a weight with fewer rows, and the scale is alpha / p."""
    sites = [Site("h.1.q", (12, 8)), Site("h.11.q", (12, 8)), Site("x.h.1.q", (3, 20)), Site("h-1.q", (3, 20))]
    spec = families.lora()
    adapter, params = trained(spec, 4, sites[:2])
    written = save_as_lora(adapter, params, tmp_path / "equal")
    assert set(written.values()) == {Written(4, 0.0)}
    config = config_in(tmp_path / "equal")
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (4, 8.0, {}, {})
    adapter, params = trained(spec, 4, [sites[0], *sites[2:]], overparametrized=True)
    save_as_lora(adapter, params, tmp_path / "mixed", rank=4)
    config = config_in(tmp_path / "mixed")
    assert (config["r"], config["lora_alpha"]) == (3, 6.0)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({r"^h\.1\.q": 4}, {r"^h\.1\.q": 8.0})
    assert config["target_modules"] == ["h.1.q", "x.h.1.q", "h-1.q"]


def test_blocks_are_written_as_the_weight_that_they_lie_in(tmp_path):
    sites = grid(layers=2, kinds={"qkv": (24, 16), "up": (16, 12)}, fused={"qkv": ["q", "k", None]})
    adapter, params = trained(families.lotr(), 2, sites)
    written = save_as_lora(adapter, params, tmp_path / "lora")
    assert {path: site.rank for path, site in written.items() if "0" in path} == {"layers.0.qkv": 4, "layers.0.up": 2}
    again = read_peft(tmp_path / "lora")
    for path in written:
        update = delta(adapter, params, path)
        found = delta(again.adapter, again.params, path)
        np.testing.assert_allclose(found, update, rtol=0, atol=1e-5 * abs(update).max())


def test_a_lower_rank_is_written_with_its_error(tmp_path):
    adapter, params = trained(families.lora(), 4)
    written = save_as_lora(adapter, params, tmp_path / "lora", rank=1)
    assert {rank for rank, _ in written.values()} == {1}
    assert all(0 < error < 1 for _, error in written.values())


def test_a_kernel_is_written_as_peft_writes_that_of_a_convolution(tmp_path):
    adapter, params = trained(families.flora(kernel_axes=2), 2, [Site("conv", (12, 8, 3, 2))])
    save_as_lora(adapter, params, tmp_path / "lora")
    shapes = {name: value.shape for name, value in load_file(tmp_path / "lora" / "adapter_model.safetensors").items()}
    assert shapes == {f"{PREFIX}conv.lora_A.weight": (2, 8, 3, 2), f"{PREFIX}conv.lora_B.weight": (12, 2, 1, 1)}


def test_what_was_trained_along_is_written_too(tmp_path):
    adapter, params = trained(families.lora())
    head = {"head.weight": np.ones((2, 3), np.float32)}
    save_as_lora(adapter, params, tmp_path / "lora", extra=head, modules_to_save=["head"])
    assert config_in(tmp_path / "lora")["modules_to_save"] == ["head"]
    np.testing.assert_array_equal(read_peft(tmp_path / "lora").extra["head.weight"], head["head.weight"])


def test_an_earlier_checkpoint_is_replaced(tmp_path):
    adapter, params = trained(families.lora())
    (tmp_path / "lora").mkdir()
    save_as_lora(adapter, params, tmp_path / "lora")
    save_as_lora(adapter, params, tmp_path / "lora", rank=1)
    assert config_in(tmp_path / "lora")["r"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["lora"]


def test_a_folder_with_anything_else_is_left_alone(tmp_path):
    adapter, params = trained(families.lora())
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(FormatError, match=r"this one holds README.md\.\nName a new folder\. Nothing was written"):
        save_as_lora(adapter, params, tmp_path)
    with pytest.raises(FormatError, match=r"(?s)this is a file.*Nothing was written"):
        save_as_lora(adapter, params, tmp_path / "README.md")
    assert [entry.name for entry in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("moment", ["tnadapt._files.peft_folder.save_file", "pathlib.Path.rename"])
def test_a_write_that_fails_leaves_the_earlier_one(moment, tmp_path, monkeypatch):
    adapter, params = trained(families.lora())
    save_as_lora(adapter, params, tmp_path / "lora")
    calls = []
    rename = type(tmp_path).rename

    def fail(*words, **_):
        calls.append(words)
        if moment.endswith("rename") and len(calls) != 2:
            return rename(*words)
        raise OSError("disk full")

    monkeypatch.setattr(moment, fail)
    with pytest.raises(OSError, match="disk full"):
        save_as_lora(adapter, params, tmp_path / "lora", rank=1)
    assert config_in(tmp_path / "lora")["r"] == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["lora"]


def test_what_cannot_be_written_leaves_no_folder(tmp_path):
    adapter, params = trained(families.lora())
    with pytest.raises(SiteError, match="is missing"):
        save_as_lora(adapter, {}, tmp_path / "lora")
    with pytest.raises(FormatError, match=r"(?s)must be finite in float32.*Nothing was written"):
        save_as_lora(adapter, params | {"1.up.B": np.full((16, 2), 1e200)}, tmp_path / "lora")
    adapter, params = trained(families.krona(), rank=None)
    with pytest.raises(PlanError, match="has full rank"):
        save_as_lora(adapter, params, tmp_path / "lora")
    assert list(tmp_path.iterdir()) == []
