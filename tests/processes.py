"""Run processes side by side, such as the members of a group, and stop them all if one of them does not end."""

import multiprocessing
import os
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

GRACE = 10  # seconds in which a launcher has to end the processes that it started

# The processes of `fork_all` are forked from a server. It imports once what takes each of them five seconds of a
# processor; it runs nothing, so that it has no threads that a fork would lose.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.torch.parallel.scenes", "tests.torch.parallel.ways"])


def run_all(commands: Sequence[Sequence[str]], timeout: float) -> None:
    """Run the commands at once, and fail with what they said unless each ends well within `timeout` seconds."""
    jobs = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for words in commands]
    try:
        said = [job.communicate(timeout=timeout)[1] for job in jobs]
    finally:
        for job in jobs:
            job.terminate()
        for job in jobs:
            try:
                job.wait(GRACE)
            except subprocess.TimeoutExpired:
                job.kill()
                job.wait()
    assert [job.returncode for job in jobs] == [0] * len(jobs), "\n".join(said)


def fork_all(main: Callable[..., None], calls: Sequence[Sequence[object]], timeout: float) -> None:
    """Call a function of a module in one process for each of `calls`, which are its arguments.

    Fail with what they said unless each ends well within `timeout` seconds.
    """
    end = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(number) for number in range(len(calls))]
        jobs = [SERVER.Process(target=_call, args=(file, main, *call)) for file, call in zip(files, calls, strict=True)]
        for job in jobs:
            job.start()
        try:
            for job in jobs:
                job.join(max(0.0, end - time.monotonic()))
        finally:
            late = [number for number, job in enumerate(jobs) if job.is_alive()]
            for job in jobs:
                job.kill()
                job.join()
        said = "\n".join(file.read_text(encoding="utf-8") for file in files if file.exists())
    assert late == [], f"did not end in {timeout} s: {late}\n{said}"
    assert [job.exitcode for job in jobs] == [0] * len(jobs), said


def _call(file: Path, main: Callable[..., None], *arguments: object) -> None:
    """Call the function with its output in a file, and leave out the end of the interpreter.

    There torch 2.13 frees gloo's threads too late: one process in eight that used fully_shard aborts, with no line of
    tnadapt in it ("terminate called without an active exception").
    """
    output = os.open(file, os.O_CREAT | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(output, stream)
    code = 1
    try:
        main(*arguments)
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)
