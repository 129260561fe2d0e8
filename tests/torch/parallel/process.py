"""One process of several plays scenes and lives: `main(folder, rank, world, what, ...)`.

Each `what` is a scene, a way of the table in docs/guides/torch.md, or PLAN-KIND of a life.
"""

import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.torch.parallel.life import Life, Plan
from tests.torch.parallel.scenes import SCENES
from tests.torch.parallel.ways import SHARED, differences

WAIT = 180  # seconds for another process, after which this one fails


def play(what: str) -> list[str]:
    """Return what went wrong."""
    folder = Path(what)
    folder.mkdir(exist_ok=True)
    dist.barrier()
    os.chdir(folder)
    try:
        if what in SCENES:
            SCENES[what]()
            return []
        if what in SHARED:
            return differences(SHARED[what])
        words, kind = what.split("-")
        return Life(kind, Plan(tuple(words.split(","))), Path()).run()
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return [f"{type(error).__name__}: {str(error)[:500]} ({where.filename}:{where.lineno})"]
    finally:
        os.chdir("..")


def main(folder: Path, rank: int, world: int, *whats: str) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    place = {"rank": rank, "world_size": world, "timeout": timedelta(seconds=WAIT)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", **place)
    found = {}
    for what in whats:
        start = time.process_time()
        found[what] = play(what)
        print(f"{what}: {time.process_time() - start:.1f} s", *found[what], sep="\n   ", file=sys.stderr, flush=True)
    torch.save(found, f"{rank}.pt")
    dist.barrier()  # none leaves while another one still talks to it
