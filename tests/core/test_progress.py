"""The progress bar: on a terminal after a second, one at a time, and nowhere else."""

import errno
import io
import sys

import numpy as np
import pytest

from tnadapt import _progress, families, grid, init, save_as_lora
from tnadapt._command.progress import Line
from tnadapt._progress import reserved, watched


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def connect(monkeypatch):
    """Return a function that makes standard error a terminal: in the test, since pytest puts its own there first."""
    for name in ("CI", "RANK", "LOCAL_RANK", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(_progress, "DELAY", 0.0)

    def put(stream=None):
        stream = Terminal() if stream is None else stream
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return put


def work(items, what="merge"):
    with watched(items, what) as found:
        return list(found)


def test_a_bar_is_shown_on_a_terminal_and_leaves_no_trace(connect):
    terminal = connect()
    assert work([3, 1, 2]) == [3, 1, 2]
    assert "merge" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")  # the line is erased at the end


def test_fast_work_shows_none(connect, monkeypatch):
    monkeypatch.setattr(_progress, "DELAY", 60.0)
    terminal = connect()
    assert work([1, 2]) == [1, 2]
    assert terminal.getvalue() == ""


class Writer:
    def write(self, text):
        return len(text)


def closed():
    stream = Terminal()
    stream.close()
    return stream


SURROUNDINGS = [  # a variable and its value, and whether a line is shown on a terminal
    ("CI", "true", False),
    ("CI", "1", False),
    ("CI", "false", True),
    ("CI", "", True),
    ("TERM", "dumb", False),
    ("TERM", "unknown", False),
    ("TERM", "xterm-256color", True),
    ("RANK", "1", False),
    ("RANK", "0", True),
    ("LOCAL_RANK", "3", False),
    ("FORCE_COLOR", "", True),
    ("FORCE_COLOR", "1", True),
]


def assert_all_show(shown):
    """Assert that what reserves a line, what watches a loop and the line of the command give one answer."""
    with reserved() as found:
        assert found == shown
    items = [1, 2]
    with watched(items, "merge") as found:
        assert (found is not items) == shown
        assert list(found) == items
    assert not shown or "merge" in sys.stderr.getvalue()
    with Line("binding"):
        pass
    assert not shown or "binding" in sys.stderr.getvalue()


@pytest.mark.parametrize(("name", "value", "shown"), SURROUNDINGS)
def test_one_answer_holds_for_all_lines_on_a_terminal(name, value, shown, connect, monkeypatch):
    terminal = connect()
    monkeypatch.setenv(name, value)
    assert_all_show(shown)
    assert bool(terminal.getvalue()) == shown


@pytest.mark.parametrize("make", [io.StringIO, lambda: None, Writer, closed], ids=["file", "none", "writer", "closed"])
def test_one_answer_holds_for_all_lines_off_a_terminal(make, connect, monkeypatch):
    connect()
    monkeypatch.setattr(sys, "stderr", make())
    monkeypatch.setenv("FORCE_COLOR", "1")  # colours in a log are asked for, but no line that is erased
    assert_all_show(False)
    assert not isinstance(sys.stderr, io.StringIO) or sys.stderr.closed or sys.stderr.getvalue() == ""


def test_a_loop_in_a_computation_of_the_command_shows_no_bar_of_its_own(connect):
    terminal = connect()
    with Line("binding") as line:
        assert work([1, 2], "inner") == [1, 2]
        with line.hidden():
            assert work([1, 2], "inner") == [1, 2]
    assert "inner" not in terminal.getvalue()
    work([1, 2], "after")
    assert "after" in terminal.getvalue()


def test_a_single_item_shows_none(connect):
    connect()
    items = [1]
    with watched(items, "merge") as found:
        assert found is items


def test_there_is_one_bar_at_a_time(connect):
    terminal = connect()
    with watched([1, 2], "outer") as found:
        for _ in found:
            assert work([1, 2], "inner") == [1, 2]
    assert "outer" in terminal.getvalue()
    assert "inner" not in terminal.getvalue()


def test_a_loop_that_fails_ends_the_bar(connect):
    terminal = connect()

    def fail():
        with watched([1, 2, 3], "first") as found:
            for _ in found:
                raise ValueError("broken")

    with pytest.raises(ValueError, match="broken") as held:
        fail()
    assert held.traceback is not None  # which holds the frames of the loop
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1  # the cursor is back
    work([1, 2], "second")
    assert "second" in terminal.getvalue()


class Leaving(Terminal):
    """A terminal that goes away after some writes, as where a connection ends; it may tell so by then."""

    def __init__(self, writes, tells):
        super().__init__()
        self.writes, self.tells, self.failed = writes, tells, 0

    def isatty(self):
        return self.writes > 0 or not self.tells

    def write(self, text):
        if self.writes <= 0:
            self.failed += 1
            raise OSError(errno.EIO, "Input/output error")
        self.writes -= 1
        return super().write(text)

    def flush(self):
        if self.writes <= 0 and not self.tells:
            raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("tells", [False, True])
@pytest.mark.parametrize("writes", [1, 2, 3])
def test_work_goes_on_without_the_terminal(writes, tells, connect):
    terminal = connect(Leaving(writes, tells))
    assert work([3, 1, 2]) == [3, 1, 2]
    assert "merge" in terminal.getvalue() or writes < 3
    assert (terminal.failed == 0) == tells, "what is left in its buffer would fail at the end of the interpreter"
    terminal = connect(Leaving(writes, tells))
    with Line("binding", bar=True) as line:
        for number in range(3):
            line.advance("ranks", completed=number, total=3)
        with line.hidden():
            pass
    assert (terminal.failed == 0) == tells


def test_decompositions_and_exports_show_it(connect, tmp_path):
    adapter = families.pissa().bind(grid(layers=2, kinds={"q": (4, 4)}), rank=1)
    weights = {path: np.eye(4) for path in adapter.weights}
    terminal = connect()
    params = init(adapter, weights)
    assert "starting values" in terminal.getvalue()
    save_as_lora(adapter, params, tmp_path / "lora")
    assert "export as LoRA" in terminal.getvalue()
