"""The line of a computation: on a terminal alone, and gone when it ends."""

import io
import re
import sys

import pytest

from tnadapt import TnadaptError
from tnadapt._command.main import main
from tnadapt._command.progress import Line

QUIET = ("CI", "RANK", "LOCAL_RANK")  # variables that hide the line
CODE = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])")


class Terminal(io.TextIOWrapper):
    """A stream that is a terminal, and keeps what is written."""

    def __init__(self, encoding="utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        return True

    def written(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


def screen(written):
    """Return the lines that a terminal shows in the end, the row of the cursor, and whether it is shown."""
    lines, row, column, cursor, at = [""], 0, 0, True, 0
    while at < len(written):
        if code := CODE.match(written, at):
            number, letter = code[1], code[2]
            if letter == "A":
                row = max(row - int(number or 1), 0)
            elif letter == "K":
                lines[row] = ""
            elif letter in "hl" and number == "?25":
                cursor = letter == "h"
            else:
                assert letter == "m", code[0]
            at = code.end()
            continue
        letter, at = written[at], at + 1
        if letter == "\r":
            column = 0
        elif letter == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + letter + lines[row][column + 1 :]
            column += 1
    return "\n".join(line.rstrip() for line in lines).rstrip().split("\n"), row, cursor


@pytest.fixture
def terminal(monkeypatch):
    """A function: make standard error a terminal of this encoding and kind."""

    def make(encoding="utf-8", term="xterm"):
        for name in ("LC_ALL", "LC_CTYPE", "LANG", "PYTHONIOENCODING", "FORCE_COLOR", "NO_COLOR", *QUIET):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", term)
        monkeypatch.setenv("COLUMNS", "60")
        stream = Terminal(encoding)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return make


def test_the_screen_of_this_test_shows_what_is_left():
    assert screen("ab\ncd\r\x1b[2Ke\x1b[1A!") == (["a!", "e"], 0, True)
    assert screen("\x1b[?25lspin\n") == (["spin"], 1, False)


@pytest.mark.parametrize("bar", [False, True])
def test_the_line_leaves_no_trace(bar, terminal):
    stream = terminal()
    with Line("binding", bar=bar) as line:
        line.tell("ranks of 1024x1024")
        line.advance("ranks of 2 x 2", completed=1, total=2)
        shown = screen(stream.written())[0]
    assert "binding" in stream.written()
    assert shown != [""]
    assert screen(stream.written()) == ([""], 0, True)


def test_the_line_is_gone_while_something_is_printed(terminal):
    stream = terminal()
    with Line("binding") as line:
        with line.hidden():
            stream.write("holds\n")
        line.tell("more")
    assert screen(stream.written()) == (["holds"], 1, True)


@pytest.mark.parametrize("error", [TnadaptError("no"), KeyboardInterrupt("stop")])
def test_an_error_erases_the_line(error, terminal):
    stream = terminal()
    with pytest.raises(type(error), match=str(error)), Line("binding"):
        raise error
    assert screen(stream.written()) == ([""], 0, True)


@pytest.mark.parametrize("words", [("show", "lora", "--sites", "gpt2"), ("compare", "lora", "--sites", "gpt2")])
def test_a_command_leaves_no_trace_on_standard_error(words, terminal, capsys):
    stream = terminal()
    assert main([*words, "--limit", "1"]) == 0
    assert "\x1b[?25l" in stream.written()
    assert screen(stream.written()) == ([""], 0, True)
    assert "lora" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["short", "a line that is longer than the sixty columns of this terminal, and cropped"]
)
@pytest.mark.parametrize("bar", [False, True])
def test_the_line_is_plain_where_the_terminal_shows_no_more(text, bar, terminal):
    for encoding in ("ascii", "cp1252"):
        stream = terminal(encoding)
        with Line(text, bar=bar):
            pass
        (shown,) = set(re.findall(rf"[^\s]+ {text[:20]}[^\r\n]*", CODE.sub("", stream.written())))
        assert shown.isascii()
        assert shown[0] in "-\\|/"
        assert len(shown) <= 60
        assert shown.endswith("0:00:00") == bar


def test_nothing_is_shown_where_nothing_can_be_erased(terminal, monkeypatch):
    stream = terminal(term="dumb")
    with Line("binding") as line, line.hidden():
        line.tell("more")
    assert stream.written() == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # colours in a log are asked for, but no spinner
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with Line("binding"):
        pass
    assert log.getvalue() == ""
