"""Run a function in a process of its own, as the only member of a process group.

The threads of gloo end badly in torch 2.13: a process that had any must not go on to other tests, nor to the end of its
interpreter.
"""

import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 300


def run_alone(function: Callable[[], None]) -> None:
    """Run a function of a module without arguments, and fail with its output if it fails or does not end."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.torch.alone", function.__module__, function.__name__, folder]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def main(module: str, name: str, folder: str) -> None:
    """Run the function, and end the process without the interpreter's teardown."""
    import torch.distributed as dist

    store = dist.FileStore(str(Path(folder) / "meet"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    code = 1
    try:
        getattr(importlib.import_module(module), name)()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
