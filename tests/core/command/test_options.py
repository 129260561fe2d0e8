"""The parser: every command has help with examples that it understands."""

import re
import shlex
import sys

import pytest

from tnadapt._command.options import COMMANDS, MODEL, make_parser
from tnadapt._hosts import CONFIGS

RUNS = {name: lambda options: 0 for name in COMMANDS}
EXAMPLES = [example for command in COMMANDS.values() for example in command.examples]
OWN = "from tnadapt import families\nmy_spec = families.lora()\n"


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_understood(example, tmp_path, monkeypatch):
    (tmp_path / "my_adapter.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    command = re.search(r"tnadapt [^|)]*", example)[0]  # without the words of the shell around it
    words = shlex.split(command)
    options = make_parser(RUNS).parse_args(words[1:])
    assert options.command == words[1]
    assert options.run(options) == 0


def test_every_command_has_its_function():
    assert list(sys.modules["tnadapt._command.main"].RUNS) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_examples(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        make_parser(RUNS).parse_args([name, "--help"])
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.rstrip().endswith(COMMANDS[name].examples[-1])
    assert "example" in out


def test_an_error_names_the_help_of_its_command(capsys):
    with pytest.raises(SystemExit, match="2"):
        make_parser(RUNS).parse_args(["show", "--rank", "x"])
    assert capsys.readouterr().err.endswith("; see tnadapt show --help\n")


def test_the_default_model_is_known():
    assert MODEL in CONFIGS
