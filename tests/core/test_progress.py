"""The progress bar: on a terminal after a second, one at a time, and nowhere else."""

import io
import sys

import numpy as np
import pytest

from tnadapt import _progress, families, grid, init, save_as_lora
from tnadapt._progress import watched


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def connect(monkeypatch):
    """Return a function that makes standard error a terminal: in the test, since pytest puts its own there first."""
    for name in ("CI", "RANK", "LOCAL_RANK", "NO_COLOR"):
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


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb"), ("RANK", "1"), ("LOCAL_RANK", "3")])
def test_it_is_off_in_ci_and_on_other_processes(name, value, connect, monkeypatch):
    connect()
    items = [1, 2]
    with watched(items, "merge") as found:
        assert found is not items
    monkeypatch.setenv(name, value)
    with watched(items, "merge") as found:
        assert found is items


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_it_is_off_without_a_terminal(stream, connect, monkeypatch):
    connect()
    monkeypatch.setattr(sys, "stderr", stream)
    items = [1, 2]
    with watched(items, "merge") as found:
        assert found is items


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


def test_decompositions_and_exports_show_it(connect, tmp_path):
    adapter = families.pissa().bind(grid(layers=2, kinds={"q": (4, 4)}), rank=1)
    weights = {path: np.eye(4) for path in adapter.weights}
    terminal = connect()
    params = init(adapter, weights)
    assert "starting values" in terminal.getvalue()
    save_as_lora(adapter, params, tmp_path / "lora")
    assert "export as LoRA" in terminal.getvalue()


def test_work_goes_on_beside_a_stream_that_only_writes_or_is_closed(connect):
    class Writer:
        def write(self, text):
            return len(text)

    closed = io.StringIO()
    closed.close()
    for stream in (Writer(), closed):
        connect(stream)
        assert work([1, 2]) == [1, 2]
