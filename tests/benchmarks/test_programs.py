"""The programs run at tiny sizes, write a record each, and refuse to time compiled code that drops work."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.thorough import left_to_laws

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("modules")


@pytest.fixture
def run(modules, monkeypatch, tmp_path, capsys):
    """A function that runs a program here and returns its record: to start one takes ten seconds."""
    threads = torch.get_num_threads()

    def call(name, *words):
        from recording import read

        program = importlib.import_module(name)
        monkeypatch.setattr(
            sys, "argv", [f"{name}.py", *words, "--device", "cpu", "--threads", "1", "--record", str(tmp_path)]
        )
        program.main()
        return read(tmp_path / f"{name}-cpu.json"), capsys.readouterr().out

    yield call
    torch.set_num_threads(threads)


def test_regimes_have_a_table_each(run):
    words = ("--quick", "--rounds", "1", "--methods", "LoRA", "LoTR", "--regimes", "1", "64")
    record, printed = run("regimes", *words)
    assert [table.title for table in record.tables] == [
        "one token, no grad (1 x 64 wide, 1 token)",
        "64 tokens, eager (1 x 64 wide, 64 tokens)",
    ]
    for table in record.tables:
        assert table.title in printed
        assert [row["method"] for row in table.rows] == ["LoRA", "LoTR"]
        for row in table.rows:
            assert row["/ base"] == pytest.approx(row["tnadapt ms"] / row["base ms"])
            assert row["/ limit"] == pytest.approx(row["/ base"] / row["limit / base"])
            assert row["limit / base"] > 1
        assert isinstance(table.rows[1]["/ by hand"], float)
        assert table.rows[1]["/ PEFT"] == "-"  # which has no LoTR
        assert table.units["/ base"] == "ratio"
        assert table.units["tnadapt ms"] == "ms"


def test_the_clock_of_the_processor_leaves_out_waits(run, monkeypatch, capsys):
    import time

    import timing

    record, _ = run("calibrate", "--quick", "--rounds", "1", "--clock", "cpu")
    assert record.clock == "cpu"
    assert timing.medians({"sleep": lambda: time.sleep(0.03)}, 1)["sleep"] < 0.02
    run("calibrate", "--quick", "--rounds", "1")
    assert timing.medians({"sleep": lambda: time.sleep(0.03)}, 1)["sleep"] >= 0.03
    monkeypatch.setattr(sys, "argv", ["x.py", "--clock", "cpu", "--threads", "2"])
    with pytest.raises(SystemExit, match="2"):
        timing.arguments("x")
    assert "--clock cpu: expected --threads 1 and --device cpu" in capsys.readouterr().err


def test_what_does_not_fit_into_the_time_is_named(run):
    record, _ = run("regimes", "--quick", "--methods", "LoRA", "VeRA", "--regimes", "1", "--seconds", "0")
    assert [row["method"] for row in record.tables[0].rows] == ["left out for lack of time: LoRA, VeRA"]


def test_compiled_code_with_other_gradients_is_not_timed():
    """A planted fault: the update is dropped from the compiled step."""
    from llama import Shape, adapted, host_of, methods
    from regimes import CompileError, check_gradients

    shape = Shape(64, 96, 4, 2, layers=1)
    host = host_of(shape, "cpu", torch.float32)
    x, cotangent = torch.randn(1, 8, 64, requires_grad=True), torch.randn(1, 8, 64)
    model, state = adapted(host, methods(shape)["LoRA"])

    def dropped(inputs_embeds):
        found = model(inputs_embeds=inputs_embeds)
        found.last_hidden_state = found.last_hidden_state * 1.01
        return found

    check_gradients((model, model), state, x, cotangent)
    with pytest.raises(CompileError, match="gradients are off by"):
        check_gradients((dropped, model), state, x, cotangent)


def test_peft_is_left_out_where_it_fails(modules, monkeypatch, capsys):
    """What does not compile is no contestant; but if tnadapt fails, the row says so."""
    import regimes
    from llama import Shape, host_of

    shape = Shape(64, 96, 4, 2, layers=1)
    x = torch.randn(1, 4, 64, requires_grad=True)
    speeds = regimes.Speeds(1.0, 1.0, 1.0, overlaps=False)
    regime = regimes.Regime("compiled", compiled=True)
    setting = regimes.Setting(regime, shape, host_of(shape, "cpu", torch.float32), x, x.detach(), speeds, 1)
    failing = ["PEFT"]

    def step(setting, name, model, trained):
        if name in failing:
            raise RuntimeError("no graph\nfor this")
        return lambda: None

    monkeypatch.setattr(regimes, "_step", step)
    row = regimes.row_of(setting, "LoRA")
    assert (row["/ PEFT"], row["PEFT / base"]) == ("-", "-")
    assert "PEFT of lora is left out: no graph" in capsys.readouterr().err
    failing.append("tnadapt")
    with pytest.raises(regimes.CompileError, match=r"^tnadapt: RuntimeError: no graph$"):
        regimes.row_of(setting, "LoRA")


def test_the_script_for_a_gpu_runs_three_programs_within_six_minutes(tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "ran $*"\ncase $1 in *passes.py) exit 3;; esac\n', encoding="utf-8")
    fake.chmod(0o755)
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
    words = ["sh", str(script), str(tmp_path / "records"), str(fake)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    ran = [line.rpartition("benchmarks/")[2].split() for line in done.stdout.splitlines() if line.startswith("ran ")]
    assert [one[0] for one in ran] == ["calibrate.py", "passes.py", "regimes.py"]
    words = ["--device", "cuda", "--dtype", "bfloat16", "--record", str(tmp_path / "records")]
    assert [one[1:7] for one in ran] == [words] * 3
    assert 250 <= int(ran[2][-1]) <= 315
    assert done.returncode == 1
    assert "passes.py: failed or ran out of time (3)" in done.stderr


@pytest.mark.slow
@left_to_laws("compiles for a minute; make laws runs it")
def test_the_compiled_regime(run):
    record, _ = run("regimes", "--quick", "--rounds", "1", "--methods", "LoRA", "LoTR", "--regimes", "compiled")
    assert [isinstance(row["/ base"], float) for row in record.tables[0].rows] == [True, True]


def test_passes_has_launches_and_passes(run, monkeypatch):
    import passes
    from llama import Shape

    monkeypatch.setattr(passes, "SHAPE", Shape(64, 96, 4, 2, layers=1))
    monkeypatch.setattr(passes, "TOKENS", 13)
    monkeypatch.setattr(passes, "baseline", lambda options: [{"LoRA": {"added": 1, "with the base": 2}}, {}])
    record, _ = run("passes", "--methods", "LoRA")
    launches, bytes_moved, operators = record.tables
    base, lora = launches.rows
    assert base["with the base"] == base["added"]
    assert lora["with the base"] == base["added"] + lora["added"]
    assert lora["the least"] == 3 * 4 + 3 * 7
    assert lora["/ before"] == lora["added"]
    assert lora["with the base / before"] == lora["with the base"] / 2
    if lora["PEFT"] != "-":
        assert lora["PEFT"] == lora["by hand"] == 7 * 10
    assert bytes_moved.rows[1]["the least"] == (2 * (3 * 64 + 96) + 64 + 2 * 32 + 64 + 2 * 96 + 64) / 64
    assert [row["method"] for row in operators.rows] == ["frozen base", "LoRA"]


SMALL = {
    "ops": {"CASES": {"lora": {"rank": 8}, "vera": {"rank": 16}}, "WIDTH": 64, "TOKENS": (1, 4)},
    "peers": {
        "TOKENS": 8,
        "SHAPE": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4},
    },
    "lorta": {"WIDTH": 48, "LAYERS": 2, "TOKENS": 4},
    "magnitude": {"SHAPES": ((64, 64), (96, 64)), "TOKENS": 4},
    "inside": {"WIDTH": 64, "TOKENS": 4},
    "cyclic": {"CASES": [(64, 16)], "TOKENS": (1,)},
    "scaling": {"SITES": (2, 3), "TOKENS": (1,), "RANKS": {"lora": 8, "lorta": 8}, "LLAMA_70B": {"q": (64, 64)}},
    "memory": {"WIDTH": 64, "TOKENS": 4},
    "blocks": {"HIDDEN": 128, "INNER": 192, "TOKENS": 5, "CASES": ("LoTR",)},
}


@pytest.mark.slow
@left_to_laws("takes a minute; make laws runs it")
@pytest.mark.filterwarnings("ignore:Specified to not save vera_A:UserWarning")  # of PEFT
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT reads it
@pytest.mark.parametrize("name", SMALL)
def test_a_program_runs_and_records(name, run, monkeypatch):
    """Not at its sizes: `make bench` stops at the first program that fails."""
    program = importlib.import_module(name)
    for constant, value in SMALL[name].items():
        monkeypatch.setattr(program, constant, value)
    monkeypatch.setattr(importlib.import_module("timing"), "SLICE", 0.0)
    record, _ = run(name, "--rounds", "1")
    assert record.program == name
    assert all(table.rows for table in record.tables)


def test_calibrate_has_the_planner_constants(run):
    record, _ = run("calibrate", "--quick", "--rounds", "1")
    speeds, constants, gradients = record.tables
    assert all(row["value"] > 0 for row in speeds.rows)
    assert [row["constant"] for row in constants.rows] == ["MOVED", "CALL", "call", "slow", "skinny"]
    assert all(row["now"] > 0 for row in constants.rows)
    assert [row["rank"] for row in gradients.rows] == [4, 16]
