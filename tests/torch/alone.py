"""Run functions in a process of their own, as the only member of a process group.

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


def run_alone(*functions: Callable[[], None]) -> None:
    """Run functions of modules without arguments, and fail with their output if one fails or they do not end."""
    names = [word for function in functions for word in (function.__module__, function.__name__)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.torch.alone", folder, *names]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def main(folder: str, *names: str) -> None:
    """Run the functions, and end the process without the interpreter's teardown."""
    import torch.distributed as dist

    store = dist.FileStore(str(Path(folder) / "meet"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    code = 1
    try:
        for module, name in zip(names[::2], names[1::2], strict=True):
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
