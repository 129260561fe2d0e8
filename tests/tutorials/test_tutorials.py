"""Every tutorial runs as written, and what it says is so."""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.modules import forget
from tests.thorough import left_to_laws
from tests.tiny_llama import write_tiny_llama

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "tutorials"
SCRIPTS = sorted(FOLDER.glob("*.py"))
NAMES = (
    "compress",
    "first_adapter",
    "from_peft",
    "jax_scan",
    "language_model",
    "own_adapter",
    "paper_table",
    "serving",
)
LONGEST_CELL = 45  # lines of code

# transformers deprecates an attribute that PEFT reads
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def undo_settings() -> Iterator[None]:
    """Run torch on one thread, since tests run in parallel, and undo what a tutorial sets in transformers."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    yield
    if transformers := sys.modules.get("transformers"):
        transformers.utils.logging.enable_progress_bar()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """A function: run a tutorial in an empty folder without showing its pictures, and return what it defines."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *changes: tuple[str, str]) -> dict[str, Any]:
        path = FOLDER / f"{name}.py"
        source = path.read_text(encoding="utf-8")
        for package in ("torch", "jax", "optax", "transformers", "peft", "matplotlib"):
            if re.search(rf"^(import|from) {package}\b", source, flags=re.MULTILINE):
                pytest.importorskip(package)
        if "matplotlib" in source:
            from matplotlib import pyplot as plt

            plt.switch_backend("agg")
            monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
        for old, new in changes:
            assert source.count(old) == 1, old
            source = source.replace(old, new)
        room: dict[str, Any] = {"__name__": "tutorial"}
        exec(compile(source, str(path), "exec"), room)
        return room

    return call


def cells_of(path: Path) -> list[tuple[bool, str]]:
    """Return the cells of a script in percent format: whether each is text, and what it holds."""
    parts = re.split(r"^# %%( \[markdown\])?\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [(kind is not None, body) for kind, body in zip(parts[1::2], parts[2::2], strict=True)]


def test_the_tutorials_are_these():
    assert tuple(path.stem for path in SCRIPTS) == NAMES
    index = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\((\w+)\.md\)", index)) == list(NAMES)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_tutorial_begins_with_a_title_has_short_cells_and_links_that_exist(path):
    cells = cells_of(path)
    assert cells[0][0]
    assert cells[0][1].startswith("# # ")
    for is_text, body in cells:
        if is_text:
            assert all(line.startswith("#") for line in body.strip().splitlines())
        else:
            ast.parse(body)
            assert len(body.strip().splitlines()) <= LONGEST_CELL
    for link in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", path.read_text(encoding="utf-8")):
        target = (FOLDER / link).resolve()
        assert link.startswith("https://") or target.is_file() or target.with_suffix(".py") in SCRIPTS, link


@pytest.mark.parametrize("name", [name for name in NAMES if name != "language_model"])
def test_a_tutorial_names_its_traps(name):
    assert (FOLDER / f"{name}.py").read_text(encoding="utf-8").count("# **Trap:**") >= 2


def test_the_first_adapter_learns_is_saved_and_merged(run, tmp_path):
    room = run("first_adapter")
    assert room["losses"][-1] < 0.05 * room["loss_before"]
    assert room["torch"].equal(room["model"](room["x"]), room["trained_answer"])  # loaded, and unmerged again
    assert room["difference_merged"] < 1e-5
    assert room["count"](room["state"].adapter).trainable == 2 * 64 * 8 + 3 * 8**2
    assert (tmp_path / "first_adapter.safetensors").is_file()


def test_an_adapter_of_ones_own_is_proved_and_trained(run):
    room = run("own_adapter")
    assert "no factor ever gets a gradient" in room["mistakes"]
    assert "'inn'" in room["mistakes"]
    assert room["count"](room["adapter"]).trainable == 2 * 4**2 + 12 * 4 + 768 * 4
    assert room["rank_bound"](room["adapter"], room["site"]).rank == 4
    assert room["generic_rank"](room["adapter"], room["site"]) == 4
    assert room["freedom"].gauge == 8
    assert len(room["laws"]) > 15
    assert room["losses"][-1] < 0.1 * room["losses"][0]
    assert room["loss_loaded"] <= room["losses"][-1]  # the loss after the last step


def test_what_peft_users_are_told_is_so(run):
    room = run("from_peft")
    assert "value" in room["mistake"]
    assert room["losses"][-1] < room["losses"][0]
    assert room["losses_inside"][-1] < room["losses_inside"][0]
    assert room["difference_loaded"] == room["difference_inside"] == 0
    assert room["difference_merged"] < 1e-5
    assert room["difference_imported"] < 1e-5
    assert room["difference_exported"] < 1e-5
    assert room["torch"].equal(room["only_second"], room["answer"](room["new_model"]()))
    assert room["difference_imported"] < 0.1 * (room["peft_answer"] - room["only_second"]).abs().max()


def test_a_scanned_model_trains_in_jax_and_answers_the_same_in_torch(run):
    room = run("jax_scan")
    assert room["losses"][-1] < 0.25 * room["losses"][0]
    assert room["start_difference"] == 0
    largest = np.abs(room["answer"]).max()
    assert room["difference"] < 1e-5 * largest
    assert room["merged_difference"] < 1e-5 * largest
    base = np.asarray(room["model"](room["weights"], room["x"]))
    assert np.abs(room["answer"] - base).max() > 0.1


def test_every_way_to_serve_gives_the_same_answers(run):
    room = run("serving")
    assert {rank for rank, _ in room["written"].values()} == {4}
    assert {error for _, error in room["written"].values()} == {0.0}
    for way in ("peft", "merged", "chat", "row"):
        assert room[f"difference_{way}"] < 1e-5, way
    base = room["answer"](room["new_model"]())
    assert (room["wanted"] - base).abs().max() > 0.1
    assert (room["mixed"][2] - base[2]).abs().max() > 0.1
    assert room["torch"].equal(room["mixed"][1], base[1])


def test_compression_saves_bytes_where_updates_are_alike(run):
    room = run("compress")
    assert room["after"] < 0.2 * room["before"]
    assert room["found"].error < 0.25
    assert 0 < room["relative"] < 0.3
    error_of = {(name, rank): (size, error) for name, rank, size, error in room["rows"]}
    for sharing in (("LoTR", 8), ("MetaTT", 12)):
        bytes_of_lora, error_of_lora = error_of["LoRA", 2]
        size, error = error_of[sharing]
        assert size < bytes_of_lora
        assert error < error_of_lora


def test_the_published_counts_differ_by_one_number(run):
    room = run("paper_table")
    differences = room["differences"]
    assert {n for (method, _), n in differences.items() if method == "tlora"} == {0}
    assert {n for (method, _), n in differences.items() if method != "tlora"} == {2 * 768}
    assert room["frozen"] == {"lotr": 0, "lora": 0, "tlora": 48 * 2 * 32 * 1024}
    for method, rank in room["ranks"].items():
        assert room["computed"](method, "roberta-base", rank) <= room["BUDGET"]
        assert room["computed"](method, "roberta-base", rank + 1) > room["BUDGET"]


@left_to_laws("make_questions and two trainings take ten seconds")
def test_the_language_model_trains_and_is_loaded(run, tmp_path, monkeypatch):
    for package in ("transformers", "reasoning_gym", "gguf", "tqdm"):
        pytest.importorskip(package)
    forget()
    (tmp_path / "docs").symlink_to(ROOT / "docs")  # the tutorial looks for the clone above the working folder
    monkeypatch.setattr(sys, "path", [*sys.path])
    write_tiny_llama(tmp_path / "llama")
    changes = [("STEPS, TESTS = 60, 40", "STEPS, TESTS = 3, 4"), ("rank=16,", "rank=4,")]
    changes += [("load_model(unpacked())", "load_model(Path('llama'))")]
    try:
        room = run("language_model", *changes)
    finally:
        forget()
    assert len(room["losses"]) == 3
    assert room["losses"][-1] < room["losses"][0]
    assert room["answers_loaded"] == room["answers_after"]
    assert room["size"] < room["size_lora"]
