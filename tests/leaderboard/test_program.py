"""The program of the leaderboard: small runs in a process, resumed, and refused where they cannot be."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.thorough import left_to_leaderboard

ROOT = Path(__file__).parents[2]
pytest.importorskip("sklearn")
pytest.importorskip("peft")


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(*words, folder):
    command = [sys.executable, "benchmarks/leaderboard", "--tasks", "digits", "--results", str(folder), *words]
    return start(command)


def start(command):
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)


@left_to_leaderboard("it starts the program three times")
@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on_with_what_is_missing(tmp_path):
    """The second call has one more rate, runs that alone, and then the final run at the better one."""
    words = ("--methods", "LoRA r8 unit", "--search-only")
    first = run(*words, "--rates", "0.03125", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    (path,) = tmp_path.glob("*.json")
    before = path.read_bytes()
    second = run(*words, "--rates", "0.03125", "4096", folder=tmp_path)
    assert second.returncode == 0, second.stderr
    assert path.read_bytes() == before
    assert [line for line in second.stdout.splitlines() if "search" in line] == second.stdout.splitlines()
    assert second.stdout.count("\n") == 1
    assert "DIVERGED" in second.stdout  # named, and not dropped
    records = [json.loads(one.read_text()) for one in tmp_path.glob("*.json")]
    assert sorted(one["diverged"] for one in records) == [False, True]
    data = json.loads(before) | {"steps": 3}
    path.write_text(json.dumps(data))
    third = run(*words, "--rates", "0.03125", folder=tmp_path)
    assert third.returncode == 1
    assert third.stderr.startswith("leaderboard: ")
    assert "expected a record of these versions and 80 steps, got another" in third.stderr
    assert "Traceback" not in third.stderr


@pytest.fixture
def called(modules, monkeypatch, capsys):
    """A function that calls the program in this process: to start one takes ten seconds. Return status and errors."""

    def call(*words):
        spec = importlib.util.spec_from_file_location(
            "leaderboard_program", ROOT / "benchmarks/leaderboard/__main__.py"
        )
        program = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(program)
        monkeypatch.setattr(sys, "argv", ["leaderboard", "--tasks", "digits", *words])
        try:
            status = program.main()
        except SystemExit as error:  # argparse's
            status = error.code
        return status, capsys.readouterr().err

    return call


def test_a_device_that_does_not_exist_is_named_in_one_line(called):
    status, errors = called("--device", "cuda:77")
    assert status == 2
    assert "argument --device: cuda:77: " in errors


def test_a_task_that_does_not_exist_is_named_in_one_line(called):
    status, errors = called("--tasks", "other")
    assert status == 2
    assert "invalid choice: 'other'" in errors


@pytest.mark.parametrize("rate", ["0", "-0.1", "nan", "inf"])
def test_a_rate_that_is_none_is_refused_before_a_run(called, rate):
    """PEFT's methods would train at a negative rate, and the page could not be drawn again."""
    status, errors = called("--methods", "PEFT LoRA r8", f"--rates={rate}")
    assert status == 2
    assert "argument --rates: invalid" in errors


def test_a_rate_that_is_no_number_is_refused_with_an_example(called):
    status, errors = called("--rates", "2^-5")
    assert status == 2
    assert "invalid rate '2^-5': expected a positive number such as 0.03125 for 2^-5" in errors


def test_a_page_of_no_records_is_refused_and_makes_no_folder(called, tmp_path):
    status, errors = called("--page", "--results", str(tmp_path / "none"))
    assert (status, errors.count("\n")) == (1, 1)
    assert "none: expected a folder with records, got none" in errors
    assert not (tmp_path / "none").exists()


@left_to_leaderboard("it starts a program with two runs, for one line of records.py")
@pytest.mark.slow
def test_a_rate_whose_file_has_the_name_of_another_is_refused(tmp_path):
    found = run("--methods", "LoRA r8 unit", "--search-only", "--rates", "0.001953125", "0.00195", folder=tmp_path)
    assert found.returncode == 1
    assert "expected a record of rate 0.00195, got one of rate 0.001953125" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["search", pytest.param("final", marks=left_to_leaderboard("it makes four runs"))])
def test_a_run_that_was_killed_is_told_and_the_next_method_runs(tmp_path, phase):
    """As the system kills one that has no memory left; for a final run the one of the search is there."""
    words = ("--methods", "LoRA r8 unit", "VeRA r64 unit", "--rates", "0.03125", "--seeds", "0")
    kill = """
import os, runpy, signal, sys
sys.path.insert(0, "benchmarks/leaderboard")
import runs
phase, of_task = sys.argv.pop(1), runs.run
def run(task, key, device):
    if key.method == "LoRA r8 unit" and key.phase == phase:
        os.kill(os.getpid(), signal.SIGKILL)
    return of_task(task, key, device)
runs.run = run
runpy.run_path("benchmarks/leaderboard", run_name="__main__")
"""
    more = ["--tasks", "digits", "--results", str(tmp_path), *words]
    found = start([sys.executable, "-c", kill, phase, *more])
    assert found.returncode == 1
    assert "left out: digits, LoRA r8 unit, rate 0.03125" in found.stdout
    assert "the process ended without an answer" in found.stdout
    assert "Traceback" not in found.stderr
    assert "| VeRA r64 unit | 0.0312 |" in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")


@left_to_leaderboard("two programs")
def test_two_programs_at_once_leave_every_record_whole(tmp_path):
    """Both run what neither has recorded yet; they agree but for times, and the record of the later one stays."""
    command = [sys.executable, "benchmarks/leaderboard", "--tasks", "digits", "--methods", "LoRA r8 unit"]
    command += ["--rates", "0.03125", "--seeds", "0", "--results", str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **pipes) for _ in range(2)]
    ends = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    told = [re.sub(r", \d+ s", "", out).splitlines() for out, _ in ends]
    assert all(line in max(told, key=len) for line in min(told, key=len))  # a run of which the other had the record
    page = start([*command, "--page"])
    assert page.returncode == 0, page.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "digits--LoRA_r8_unit--0.0312--seed100--search.json",
        "digits--LoRA_r8_unit--0.0312--seed0--final.json",
        "leaderboard.md",
        "leaderboard_digits.png",
    }
    assert "| LoRA r8 unit | 0.0312 |" in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")


@left_to_leaderboard("it starts a program, and waits for its first run")
@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_an_interrupt_ends_a_run_in_one_line(tmp_path, whole):
    """By ^C, which all processes of the terminal get, or of the program alone."""
    command = [sys.executable, "benchmarks/leaderboard", "--tasks", "digits", "--results", str(tmp_path)]
    words = ["--methods", "LoRA r8 unit", "LoTR r16 unit", "VeRA r64 unit"]
    with subprocess.Popen(
        [*command, *words],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the first run is recorded
        if whole:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == "stopped; what is recorded stays, and the next call goes on from there\n"
    assert not [*tmp_path.glob("*.draft")]
