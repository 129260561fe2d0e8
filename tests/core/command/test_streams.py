"""Standard streams that are closed or full: the status stays, there is no traceback, and an error is one line."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tnadapt import families, grid, init, save
from tnadapt._command.main import RUNS, main
from tnadapt._command.streams import opened

STREAMS = ("stdin", "stdout", "stderr")
GPT2 = ("--sites", "gpt2", "--rank", "2", "--limit", "1")
SMALL = ("given", "--to", "lora", "--rank", "1", "-o", "small")
COMMANDS = {  # each command, and ways to end without one: its status
    ("show", "lora", *GPT2): 0,
    ("compare", "lora", *GPT2): 0,
    ("compare", "lora", *GPT2, "--json"): 0,
    ("draw", "lora"): 0,
    ("draw", "lora", "-o", "x.svg"): 0,
    ("check", "lora", "--examples", "1", "--sizes", "in=2,out=2"): 0,
    ("compress", *SMALL): 0,
    ("new", "my_adapter"): 0,
    ("list",): 0,
    ("completion", "bash"): 0,
    ("--help",): 0,
    ("show", "--help"): 0,
    ("--version",): 0,
    (): 0,
    ("show", "lora", "--sites", "nothing"): 2,
    ("show", "lora", "--nothing"): 2,
}
full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")


@pytest.fixture
def status_of(tmp_path, monkeypatch):
    """A function: the status of a command, in a folder with an adapter."""
    monkeypatch.chdir(tmp_path)
    adapter = families.lora().bind(grid(layers=1, kinds={"q": (6, 4)}), rank=2)
    save(adapter, init(adapter), tmp_path / "given")

    def call(words):
        try:
            return main(words)
        except SystemExit as stop:
            return stop.code

    return call


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def test_every_command_is_tried():
    assert {words[0] for words in COMMANDS if words and words[0] in RUNS} == set(RUNS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("names", [("stdin",), ("stdout",), ("stderr",), STREAMS], ids="+".join)
def test_a_closed_stream_changes_no_status(names, words, status_of, monkeypatch, capsys):
    for name in names:
        monkeypatch.setattr(sys, name, None)
    assert status_of(words) == COMMANDS[words]
    assert all(getattr(sys, name) is None for name in names), "put back as they were"
    out, err = capsys.readouterr()
    is_told = COMMANDS[words] == 2
    assert bool(out) == ("stdout" not in names and not is_told)
    assert err.count("\n") == (is_told and "stderr" not in names)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_was_closed_in_python_is_replaced_too(name, status_of, monkeypatch):
    stream = closed()
    monkeypatch.setattr(sys, name, stream)
    assert status_of(("list",)) == 0
    assert getattr(sys, name) is stream


def test_a_stream_that_only_writes_is_enough(status_of, monkeypatch):
    class Writer:
        def __init__(self):
            self.text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    out, err = Writer(), Writer()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert status_of(("list", "--json")) == 0
    assert status_of(("list",)) == 0
    assert status_of(("show", "lora", "--sites", "nothing")) == 2
    assert json.JSONDecoder().raw_decode(out.text)[0].keys() == {"families", "models"}
    assert err.text.startswith("tnadapt: find_host: ")


def test_open_streams_are_left_alone():
    before = [getattr(sys, name) for name in STREAMS]
    with opened():
        assert [getattr(sys, name) for name in STREAMS] == before


def test_a_process_without_streams_writes_its_file_and_nothing_else_into_it(tmp_path):
    """The null device has the numbers of the streams, so that no file of the command gets one."""
    code = """
import os, sys
from tnadapt._command import main
from tnadapt._command.streams import opened
with opened():
    numbers = [stream.fileno() for stream in (sys.stdin, sys.stdout, sys.stderr)]
status = main(["draw", "lora", "-o", "x.svg"])
sys.exit(status if numbers == [0, 1, 2] else 9)
"""
    surroundings = os.environ | {"CODE": code, "PYTHONPATH": os.pathsep.join(sys.path)}
    shell = f'"{sys.executable}" -c "$CODE" <&- >&- 2>&-'
    done = subprocess.run(["/bin/sh", "-c", shell], cwd=tmp_path, env=surroundings, check=False)
    assert done.returncode == 0
    assert (tmp_path / "x.svg").read_text().endswith("</svg>\n")


@full_device
@pytest.mark.parametrize("words", [("list",), ("list", "--json"), ("completion", "bash"), ("--help",), ("--version",)])
def test_a_full_disk_is_one_line_however_much_is_printed(words, status_of, monkeypatch, capsys):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert status_of(words) == 2
    assert capsys.readouterr().err == (
        "tnadapt: standard output: expected a file or a device that can be written, got error 'No space left on "
        "device'. The output is not complete. Send it elsewhere.\n"
    )


@full_device
@pytest.mark.parametrize("words", [words for words, status in COMMANDS.items() if status == 2], ids=" ".join)
def test_an_error_that_nobody_can_be_told_keeps_its_status(words, status_of, monkeypatch, capsys):
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert status_of(words) == 2
        full.write("what the interpreter would flush at its end")
    assert capsys.readouterr() == ("", "")


@full_device
def test_both_streams_may_be_full(status_of, monkeypatch):
    with Path("/dev/full").open("w") as out, Path("/dev/full").open("w", buffering=1) as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert status_of(("list",)) == 2


@full_device
@pytest.mark.parametrize("words", [("list",), ("list", "--json"), ("--help",), ("compress", *SMALL)], ids=" ".join)
def test_a_full_disk_that_nobody_can_be_told_of_ends_quietly(words, status_of, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("w") as out, open(writer, "w", buffering=1) as err:  # noqa: PTH123  (a descriptor)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert status_of(words) == 141
        err.write("what the interpreter would flush at its end\n")
        out.write("what the interpreter would flush at its end\n")
