"""The command `compress`: it reads a LoRA checkpoint or a tnadapt file and writes the closest adapter of a spec."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tnadapt import delta, families, grid, load, raw, save, unit
from tnadapt._command.main import main
from tnadapt.binding import read_checkpoint
from tnadapt.testing import random_params

PATH = "base_model.model.model.layers.{layer}.self_attn.{kind}"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": False, "target_modules": ["q_proj", "v_proj"]}


def write_lora(folder, updates, *, config=CONFIG, rename=lambda name: name):
    """Write a checkpoint as PEFT does; `updates` maps the path of a module to B and A, without the scale."""
    folder.mkdir()
    tensors = {}
    for path, (b, a) in updates.items():
        tensors |= {rename(f"{path}.lora_A.weight"): a, rename(f"{path}.lora_B.weight"): b}
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A folder with a LoRA of rank 4 whose updates have an exact LoTR form, and these updates by path."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    left, right = random.standard_normal((16, 4)), random.standard_normal((4, 12))
    updates = {
        PATH.format(layer=layer, kind=kind): (left @ random.standard_normal((4, 4)), right)
        for layer in range(3)
        for kind in ("q_proj", "v_proj")
    }
    whole = {path.removeprefix("base_model.model."): 8 / 4 * b @ a for path, (b, a) in updates.items()}
    return write_lora(tmp_path / "lora", updates), whole


def call(capsys, *words):
    try:
        status = main([str(word) for word in words])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


def test_a_lora_with_an_exact_lotr_form_is_compressed_without_loss(shared, tmp_path, capsys):
    folder, whole = shared
    out = tmp_path / "small.safetensors"
    status, told, err = call(capsys, "compress", folder, "--to", "lotr", "--rank", 4, "-o", out)
    assert (status, err) == (0, "")
    adapter, params = load(out)
    assert adapter.spec.name == "lotr"
    assert {site.path for site in adapter.sites} == whole.keys()
    for path, update in whole.items():
        np.testing.assert_allclose(delta(adapter, params, path), update, atol=1e-5 * np.abs(update).max())
        assert path in told
    assert {value.dtype.name for name, value in params.items()} == {"float32"}
    assert f"{6 * 4 * (16 + 12):,}" in told
    assert f"{6 * 4 * 4 + 4 * (16 + 12):,}" in told
    before = (folder / "adapter_model.safetensors").stat().st_size
    assert f"{out.stat().st_size:,}" in told
    assert f"{out.stat().st_size / before:.1%}" in told
    assert "16 x 12" in told


def test_the_sites_of_a_checkpoint_have_layers_and_kinds_as_coordinates(shared, tmp_path, capsys):
    folder, _ = shared
    out = tmp_path / "small"
    words = ("--to", "lorta", "--rank", 4, "--sizes", "head=4", "-o", out, "--json", "--sweeps", 3)
    status, told, err = call(capsys, "compress", folder, *words)
    assert (status, err) == (0, "")
    data = json.loads(told)
    assert len(data["errors"]) == 6
    assert data["trainable"] == {"before": 6 * 4 * 28, "after": 4 * (12 + 4 + 4 + 3 + 2)}
    assert data["bytes"]["after"] == out.stat().st_size
    assert all(errors == sorted(errors, reverse=True) for errors in data["history"].values())
    adapter, _ = load(out)
    assert adapter.groups[0].values == {"layer": (0, 1, 2), "kind": ("self_attn.q_proj", "self_attn.v_proj")}


def test_a_tnadapt_file_can_be_compressed_and_keeps_its_extra_arrays(tmp_path, capsys):
    adapter = families.loha().bind(grid(layers=2, kinds={"q": (8, 6)}), rank=2, seed=1)
    params = random_params(adapter, np.random.default_rng(0))
    source = tmp_path / "given.safetensors"
    save(adapter, params, source, extra={"head.weight": np.arange(3.0)})
    status, _, err = call(capsys, "compress", source, "--to", "lora", "--rank", 4, "-o", source)
    assert (status, err) == (0, "")
    found = read_checkpoint(source)
    np.testing.assert_array_equal(found.extra["head.weight"], np.arange(3.0))
    for site in adapter.sites:
        update = delta(adapter, params, site)
        np.testing.assert_allclose(delta(found.adapter, found.params, site.path), update, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "scale"),
    [
        (("--scale", "unit:2"), unit(2.0)),
        (("--scale", 3), raw(3.0)),
        (("--alpha", 16), dataclasses.replace(families.lotr().scale, alpha=16.0)),
        (("--scale", "unit:2", "--alpha", 3), unit(3.0)),
    ],
)
def test_scale_and_alpha_replace_those_of_the_spec_and_leave_the_updates(shared, tmp_path, capsys, words, scale):
    folder, whole = shared
    out = tmp_path / "small"
    status, _, err = call(capsys, "compress", folder, "--to", "lotr", "--rank", 4, "-o", out, *words)
    assert (status, err) == (0, "")
    adapter, params = load(out)
    assert adapter.spec == dataclasses.replace(families.lotr(), scale=scale)
    for path, update in whole.items():
        np.testing.assert_allclose(delta(adapter, params, path), update, atol=1e-5 * np.abs(update).max())


def test_a_scale_that_does_not_fit_writes_nothing(shared, tmp_path, capsys):
    folder, _ = shared
    for words, told in (
        (("--to", "pissa", "--scale", "unit"), "is read from the host's weights"),
        (("--to", "lotr", "--scale", "units"), "argument --scale: expected a number, unit or unit:1.6, got 'units'"),
        (("--to", "lotr", "--alpha", 0), "expected an alpha that is not 0, got 0.0"),
    ):
        status, out, err = call(capsys, "compress", folder, *words, "--rank", 4, "-o", tmp_path / "small")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert told in err
    assert not (tmp_path / "small").exists()


def test_the_scale_of_a_rank_stabilized_lora_is_read(shared, tmp_path, capsys):
    folder, whole = shared
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"use_rslora": True}))
    out = tmp_path / "small"
    assert call(capsys, "compress", folder, "--to", "lotr", "--rank", 4, "-o", out)[0] == 0
    adapter, params = load(out)
    for path, update in whole.items():  # 8 / sqrt(4) in place of 8 / 4
        np.testing.assert_allclose(delta(adapter, params, path), 2 * update, atol=1e-5 * np.abs(update).max())


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--to", "lotr"), "required: -o/--output"),
        (("-o", "x"), "required: --to"),
        (("--to", "nothing", "-o", "x"), "expected a family or file.py:name, got 'nothing'; the families are"),
        (
            ("--to", "lotr", "--rank", "x=2", "-o", "x"),
            "rank: expected bonds of lotr or names of adapted modules, got 'x'",
        ),
        (
            ("--to", "lotr", "-o", "gone/x"),
            "gone/x: expected a writable path, got error 'No such file or directory'. Create its folder first.",
        ),
        (("--to", "lotr", "-o", "."), ".: expected the path of a file, got that of a folder."),
        (("--to", "lotr", "-o", "x" * 300), "got error 'File name too long'. Choose a shorter name."),
        (("--to", "lotr", "-o", "/dev/full"), "/dev/full: expected the path of a file, got that of a device."),
    ],
)
def test_a_wrong_argument_gives_a_one_line_error(shared, tmp_path, capsys, words, match):
    before = sorted(tmp_path.rglob("*"))
    status, out, err = call(capsys, "compress", shared[0], *words)
    assert (status, out) == (2, "")
    assert match in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


SOURCES = [
    ("gone", "gone: expected a file, got none. Check the path."),
    ("file", "file: expected a whole safetensors file, got one that cannot be read: "),
    ("folder", "folder: expected a folder with adapter_config.json, got none. Check the path."),
    ("x" * 300, "x: expected a path that can be used, got error 'File name too long'. Check the path."),
]


@pytest.mark.parametrize(("name", "told"), SOURCES, ids=["gone", "file", "folder", "long"])
def test_a_source_that_is_not_an_adapter_gives_a_one_line_error(tmp_path, capsys, name, told):
    (tmp_path / "file").write_text("no adapter")
    (tmp_path / "folder").mkdir()
    status, out, err = call(capsys, "compress", tmp_path / name, "--to", "lotr", "-o", tmp_path / "out")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert "Errno" not in err
    assert not (tmp_path / "out").exists()


def test_a_path_that_cannot_be_written_is_told_before_the_work(shared, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tnadapt._command.compress.compress", lambda *args, **options: pytest.fail("it began"))
    assert call(capsys, "compress", shared[0], "--to", "lotr", "-o", tmp_path / "gone" / "x")[0] == 2
