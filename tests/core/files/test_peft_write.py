"""Writing a LoRA folder for PEFT: its content, and that it is written completely or not at all."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tests.table import FAMILIES
from tnadapt import FormatError, PlanError, Site, SiteError, delta, families, grid, read_peft, save_as_lora
from tnadapt._files.peft_card import Made
from tnadapt._files.peft_write import write_loras
from tnadapt._structure import LoRA
from tnadapt.binding import Written
from tnadapt.testing import random_params

ROOT = Path(__file__).parents[3]
KINDS = {"q": (12, 8), "up": (16, 12)}
PREFIX = "base_model.model."


def trained(spec, rank=2, sites=None, **words):
    adapter = spec.bind(sites or grid(layers=2, kinds=KINDS), rank=rank, **words)
    return adapter, random_params(adapter, np.random.default_rng(0))


def config_in(folder):
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize("name", ["lotr", "lorta", "vera", "fact_tt", "loha", "tt_lora centered", "tlora"])
def test_the_written_lora_has_the_update_of_the_adapter(name, tmp_path):
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


def test_different_ranks_are_written_as_patterns(tmp_path):
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
    assert (config["r"], config["lora_alpha"]) == (4, 8.0), "a server with room for r has room for every weight"
    patterns = {rf"^{path}": number for path, number in ((r"x\.h\.1\.q", 3), (r"h\-1\.q", 3))}
    assert config["rank_pattern"] == patterns
    assert config["alpha_pattern"] == {path: 2.0 * own for path, own in patterns.items()}
    assert config["target_modules"] == ["h.1.q", "x.h.1.q", "h-1.q"]


@pytest.mark.parametrize("rank", [1, 4])
def test_a_server_that_reads_no_patterns_serves_the_right_update(rank, tmp_path):
    """Such a server takes the scale from `r` and `lora_alpha` alone. Here the weight b has a scale of its own."""
    sites = [Site("a", (12, 8)), Site("b", (3, 20)), Site("c", (12, 8))]
    adapter = families.lora().bind(sites, rank={"a": 4, "b": 2, "c": 4})
    assert len({network.scale for network in adapter.networks}) == 2
    params = random_params(adapter, np.random.default_rng(0))
    save_as_lora(adapter, params, tmp_path / "lora", rank=rank)
    config, tensors = config_in(tmp_path / "lora"), load_file(tmp_path / "lora" / "adapter_model.safetensors")
    read = read_peft(tmp_path / "lora")
    if rank == 4:
        update = delta(adapter, params, "b")
        np.testing.assert_allclose(delta(read.adapter, read.params, "b"), update, rtol=0, atol=1e-6 * abs(update).max())
    for path in "abc":
        own_rank, own_alpha = (config[f"{word}_pattern"].get(f"^{path}") for word in ("rank", "alpha"))
        assert (own_rank is None) == (own_alpha is None)
        scale = config["lora_alpha"] / config["r"]
        assert own_rank is None or own_alpha / own_rank == pytest.approx(scale, rel=1e-12)
        down, up = (tensors[f"{PREFIX}{path}.lora_{part}.weight"] for part in "AB")
        update = delta(read.adapter, read.params, path)
        np.testing.assert_allclose(scale * up @ down, update, rtol=0, atol=1e-6 * abs(update).max())


SCALES = {  # scales of three weights, and sizes of their factors A and B
    "shares of both signs": ([2.0, 2.0, -0.5], 1.0, 1.0),
    "nothing in one weight": ([2.0, 2.0, 0.0], 1.0, 1.0),
    "nothing in most": ([0.0, 0.0, 3.0], 1.0, 1.0),
    "a factor that B alone cannot hold": ([1e30, 1e30, 1e-30], 1e30, 1e-2),
    "a factor that is too large for B": ([1e-20, 1e-20, 1e20], 1e-30, 1e10),
    "a B that float32 cannot hold": ([2.0, 2.0, 1.0], 1e30, 1e-50),
    "an A that float32 cannot hold": ([2.0, 2.0, 1.0], 1e45, 1e-30),
}


@pytest.mark.parametrize("name", SCALES)
def test_one_scale_is_written_without_a_loss(name, tmp_path):
    scales, size_down, size_up = SCALES[name]
    rng = np.random.default_rng(0)
    loras = {
        path: LoRA(rng.standard_normal((2, 8)) * size_down, rng.standard_normal((12, 2)) * size_up, scale)
        for path, scale in zip("abc", scales, strict=True)
    }
    write_loras(tmp_path / "lora", dict.fromkeys("abc", (12, 8)), loras.get, {}, {}, made=Made("a test", ""))
    config, tensors = config_in(tmp_path / "lora"), load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert config["alpha_pattern"] == config["rank_pattern"] == {}
    for path, lora in loras.items():
        down, up = (tensors[f"{PREFIX}{path}.lora_{part}.weight"].astype(np.float64) for part in "AB")
        update = lora.scale * lora.B @ lora.A
        found = config["lora_alpha"] / config["r"] * up @ down
        np.testing.assert_allclose(found, update, rtol=0, atol=1e-6 * abs(update).max())


@pytest.mark.parametrize("scales", [(1e-30, 1e-30, 1e30), (1e-300, 1e-300, 1e300)])
def test_a_scale_that_no_factor_can_take_is_refused(scales, tmp_path):
    loras = {
        path: LoRA(np.ones((2, 8)), np.eye(12, 2) * 1e20, scale) for path, scale in zip("abc", scales, strict=True)
    }
    with pytest.raises(FormatError, match=r"(?s)^c: lora_[AB].weight: expected numbers that are finite in float32"):
        write_loras(tmp_path / "lora", dict.fromkeys("abc", (12, 8)), loras.get, {}, {}, made=Made("a test", ""))
    assert list(tmp_path.iterdir()) == []


def test_blocks_of_one_weight_are_written_as_one_lora(tmp_path):
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


def test_a_convolution_is_written_in_the_layout_of_peft(tmp_path):
    adapter, params = trained(families.flora(kernel_axes=2), 2, [Site("conv", (12, 8, 3, 2))])
    save_as_lora(adapter, params, tmp_path / "lora")
    shapes = {name: value.shape for name, value in load_file(tmp_path / "lora" / "adapter_model.safetensors").items()}
    assert shapes == {f"{PREFIX}conv.lora_A.weight": (2, 8, 3, 2), f"{PREFIX}conv.lora_B.weight": (12, 2, 1, 1)}


def test_fully_trained_modules_are_written_too(tmp_path):
    adapter, params = trained(families.lora())
    head = {"head.weight": np.ones((2, 3), np.float32)}
    save_as_lora(adapter, params, tmp_path / "lora", extra=head, modules_to_save=["head"])
    assert config_in(tmp_path / "lora")["modules_to_save"] == ["head"]
    np.testing.assert_array_equal(read_peft(tmp_path / "lora").extra["head.weight"], head["head.weight"])


def test_a_single_number_of_a_trained_module_keeps_its_shape(tmp_path):
    adapter, params = trained(families.lora())
    save_as_lora(adapter, params, tmp_path / "lora", extra={"head.scale": np.float32(2)}, modules_to_save=["head"])
    assert read_peft(tmp_path / "lora").extra["head.scale"].shape == ()


HEAD = {"head.weight": np.ones((2, 3))}
WRONG = {  # arguments that would write another checkpoint than was meant, and the error
    "a string": ({"modules_to_save": "head"}, "expected a list of names as modules_to_save, got 'head'"),
    "no names": ({"modules_to_save": [3]}, r"expected a list of names as modules_to_save, got \[3\]"),
    "extra alone": ({"extra": HEAD}, "extra: expected arrays of the modules in modules_to_save, got 'head.weight'"),
    "a factor": (
        {"extra": {"layers.0.q.lora_A.weight": np.ones((2, 8))}, "modules_to_save": ["q"]},
        "extra: expected arrays of the modules in modules_to_save, got 'layers.0.q.lora_A.weight'",
    ),
    "integers": ({"extra": {"head.n": np.arange(3)}, "modules_to_save": ["head"]}, "floating-point numbers, got int64"),
    "complex": ({"extra": {"head.n": [1j]}, "modules_to_save": ["head"]}, "floating-point numbers, got complex128"),
    "letters": ({"extra": {"head.n": ["3"]}, "modules_to_save": ["head"]}, "floating-point numbers, got str"),
    "a number": ({"base_model": 3}, "expected the name or the path of a model as base_model, got 3"),
    "a word": ({"fan_in_fan_out": "no"}, "expected True or False as fan_in_fan_out, got 'no'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_of_another_checkpoint_are_refused(name, tmp_path):
    adapter, params = trained(families.lora())
    words, told = WRONG[name]
    with pytest.raises(FormatError, match=told):
        save_as_lora(adapter, params, tmp_path / "lora", **words)
    assert list(tmp_path.iterdir()) == []


def test_the_base_model_may_be_a_path(tmp_path):
    adapter, params = trained(families.lora())
    for base in (tmp_path, Path("x" * 300)):
        save_as_lora(adapter, params, tmp_path / "lora", base_model=base)
        assert config_in(tmp_path / "lora")["base_model_name_or_path"] == str(base)


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
    with pytest.raises(FormatError, match=r"(?s)got one that holds README.md.*Nothing was written"):
        save_as_lora(adapter, params, tmp_path)
    with pytest.raises(FormatError, match=r"(?s)expected a folder for the checkpoint, got a file.*Nothing was written"):
        save_as_lora(adapter, params, tmp_path / "README.md")
    assert [entry.name for entry in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("moment", ["tnadapt._files.peft_folder.save_file", "pathlib.Path.rename"])
def test_a_failed_write_keeps_the_earlier_checkpoint(moment, tmp_path, monkeypatch):
    adapter, params = trained(families.lora())
    save_as_lora(adapter, params, tmp_path / "lora")
    calls = []
    rename = type(tmp_path).rename

    def fail(*words, **_):
        calls.append(words)
        if moment.endswith("rename") and len(calls) != 2:
            return rename(*words)
        raise SafetensorError("disk full") if moment.endswith("save_file") else OSError("disk full")

    monkeypatch.setattr(moment, fail)
    with pytest.raises(FormatError, match="lora: expected a writable path, got error 'disk full'"):
        save_as_lora(adapter, params, tmp_path / "lora", rank=1)
    assert config_in(tmp_path / "lora")["r"] == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["lora"]


def test_an_adapter_that_cannot_be_written_leaves_no_folder(tmp_path):
    adapter, params = trained(families.lora())
    with pytest.raises(SiteError, match=r"params: expected an array '[^']+', got none"):
        save_as_lora(adapter, {}, tmp_path / "lora")
    with pytest.raises(
        FormatError, match=r"(?s)expected numbers that are finite in float32, got NaN.*Nothing was written"
    ):
        save_as_lora(adapter, params | {"1.up.B": np.full((16, 2), 1e200)}, tmp_path / "lora")
    for value in (np.nan, np.inf):
        with pytest.raises(
            FormatError, match=r"(?s)layers.1.up: expected a finite update, got NaN.*Nothing was written"
        ):
            save_as_lora(adapter, params | {"1.up.B": np.full((16, 2), value)}, tmp_path / "lora", rank=1)
    adapter, params = trained(families.krona(), rank=None)
    with pytest.raises(PlanError, match="expected an update of less than full rank, got full rank"):
        save_as_lora(adapter, params, tmp_path / "lora")
    assert list(tmp_path.iterdir()) == []


def test_the_task_and_the_release_of_peft_are_written(tmp_path):
    adapter, params = trained(families.lora())
    save_as_lora(adapter, params, tmp_path / "plain")
    assert config_in(tmp_path / "plain")["task_type"] is None
    pinned = re.search(r"^peft==([\d.]+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)[1]
    assert config_in(tmp_path / "plain")["peft_version"] == pinned
    save_as_lora(adapter, params, tmp_path / "told", task_type="SEQ_2_SEQ_LM")
    assert config_in(tmp_path / "told")["task_type"] == "SEQ_2_SEQ_LM"
    assert read_peft(tmp_path / "told").adapter.sites == adapter.sites


@pytest.mark.parametrize("task", ["causal_lm", "", 3, ["CAUSAL_LM"]])
def test_an_unknown_task_is_refused(task, tmp_path):
    adapter, params = trained(families.lora())
    with pytest.raises(FormatError, match=r"save_as_lora: expected one of CAUSAL_LM, .* as task_type, got "):
        save_as_lora(adapter, params, tmp_path / "lora", task_type=task)
    assert list(tmp_path.iterdir()) == []
