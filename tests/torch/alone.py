"""Run functions in a process of their own, as the only member of a process group.

The threads of gloo end badly in torch 2.13: a process that had any must not go on to other tests, nor to the end of its
interpreter.
"""

import tempfile
from collections.abc import Callable

from tests.processes import fork_all

SECONDS = 300


def run_alone(*functions: Callable[[], None]) -> None:
    """Run functions of modules without arguments, and fail with their output if one fails or they do not end."""
    with tempfile.TemporaryDirectory() as folder:
        fork_all(main, [(folder, *functions)], SECONDS)


def main(folder: str, *functions: Callable[[], None]) -> None:
    """Call the functions in a group of one process."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/meet", 1), rank=0, world_size=1)
    for function in functions:
        function()
