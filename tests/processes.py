"""Run commands side by side, such as the members of a process group, and stop them all if one of them does not end."""

import subprocess
from collections.abc import Sequence

GRACE = 10  # seconds in which a launcher has to end the processes that it started


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
