"""Completion of words in a shell."""

import re
import shutil
import subprocess
import sys

import pytest

from tnadapt import families
from tnadapt._command.main import RUNS, main

ASK = """
source "$1"
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _shtab_tnadapt; echo "${COMPREPLY[@]}"; }
ask tnadapt ""
ask tnadapt show lot
ask tnadapt compare lora --sites llama-2-1
ask tnadapt show --tok
ask tnadapt compress giv
ask tnadapt compress x --to lor
ask tnadapt completion ""
"""


def script_for(shell, capsys):
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_names_and_files(tmp_path, capsys):
    pytest.importorskip("shtab")
    (tmp_path / "script").write_text(script_for("bash", capsys))
    (tmp_path / "given.safetensors").touch()
    words = ["bash", "--norc", "-c", ASK, "ask", "./script"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert [line.split() for line in done.stdout.splitlines()] == [
        list(RUNS),
        [name for name in families.__all__ if name.startswith("lot")],
        ["llama-2-13b"],
        ["--tokens"],
        ["given.safetensors"],
        [name for name in families.__all__ if name.startswith("lor")],
        ["bash", "zsh", "fish"],
    ]


@pytest.mark.parametrize(("shell", "start"), [("zsh", "#compdef tnadapt\n"), ("fish", "# AUTOMATICALLY GENERATED")])
def test_zsh_and_fish_have_a_script_with_all_names(shell, start, capsys):
    pytest.importorskip("shtab")
    script = script_for(shell, capsys)
    assert script.startswith(start)
    for name in (*RUNS, *families.__all__, "roberta-large"):
        assert re.search(rf"\b{name}\b", script)


def test_without_shtab_completion_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    out, err = capsys.readouterr()
    told = 'expected shtab to be installed, got no such module. Run: pip install "tnadapt[completion]"'
    assert (out, err) == ("", f"tnadapt: tnadapt completion: {told}\n")
