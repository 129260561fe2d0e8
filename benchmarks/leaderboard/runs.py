"""One run: a host, an adapter, some steps at a rate, and its record. Each runs in a process of its own on a CPU."""

import math
import multiprocessing
import resource
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from methods import KAPPAS, METHODS
from records import Key, Record, versions
from tasks import Task
from torch import nn

__all__ = ["RunError", "run_apart"]

WARMUP = 0.1  # share of the steps in which the rate rises
FAR = 1.0  # a loss that ends this far above its start has diverged
FEW = 10  # steps: in fewer, one batch would be compared with another
MEANS = 20  # losses in a record
MEGABYTE = 2**20


class RunError(Exception):
    """A run that failed for another reason than its rate."""


def run_apart(task: Task, key: Key, device: str) -> Record:
    """Run in a process of its own, so that memory is that of this run. Raises RunError if it fails."""
    if device != "cpu":
        return run(task, key, device)
    context = multiprocessing.get_context("fork")  # the data are there already
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(task, key, device, sender))
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # an interrupt in a fork would reach both
    try:
        process.start()
        sender.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        found: Record | str = receiver.recv()
    except EOFError:
        found = "the process ended without an answer, perhaps for want of memory"
    except BaseException:
        process.terminate()  # nobody waits for its answer any more
        raise
    finally:
        process.join()
    if isinstance(found, str):
        raise RunError(f"{key.task}, {key.method}, rate {key.rate:g}, seed {key.seed}: {found}")
    return found


def _answer(task: Task, key: Key, device: str, sender: Any) -> None:
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        # A fork has to make torch's pool of threads anew, which torch 2.13 does without a lock: where two threads are
        # the first to ask for it, one may find none and raise "Invalid thread pool!". Here one thread asks alone.
        torch.set_num_threads(torch.get_num_threads())
        sender.send(run(task, key, device))
    except KeyboardInterrupt:
        return  # the parent has it, too, and says so
    except Exception as error:  # told to the parent, whatever it is
        sender.send(f"{type(error).__name__}: {error}")


def run(task: Task, key: Key, device: str) -> Record:
    """Train an adapter of the method, and score it on the validation split; a final run also on the test split."""
    begin = _memory(device)
    host = task.host(key.seed).to(device)
    before = task.forgetting(host)
    adapted = (METHODS | KAPPAS)[key.method](host, task.targets, key.seed)
    heads = task.heads(adapted.model)
    start = time.perf_counter()
    losses = train(adapted.model, [*adapted.groups(key.rate), *heads], task, key.seed)
    seconds = time.perf_counter() - start
    is_final = key.phase == "final"
    score, loss = task.validate(adapted.model)
    test, size = task.test(adapted.model) if is_final else (None, 0)
    after = task.forgetting(adapted.model)
    return Record(
        key=key,
        steps=task.steps,
        numbers=adapted.numbers,
        bytes=adapted.size(),
        seconds=round(seconds, 3),
        memory=round((_memory(device, peak=True) - begin) / MEGABYTE, 1),
        score=score,
        loss=loss,
        diverged=has_diverged(losses),
        losses=thinned(losses),
        test=test,
        test_size=size,
        forgetting=None if before is None or after is None else (before, after),
        versions=versions(),
    )


def train(model: nn.Module, groups: list[dict[str, Any]], task: Task, seed: int) -> list[float]:
    """Train with AdamW without decay; the rate rises in a tenth of the steps, then falls to 0. Return the losses.

    A loss that is no number ends the training.
    """
    plain = [{word: value for word, value in group.items() if word != "weight_decay"} for group in groups]
    optimizer = torch.optim.AdamW(plain, weight_decay=0.0)
    warm = max(1.0, WARMUP * task.steps)
    factor: Callable[[int], float] = lambda step: min(1.0, (step + 1) / warm) * (1.0 - step / task.steps)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses: list[float] = []
    for step in range(task.steps):
        optimizer.zero_grad()
        loss = task.loss(model, step, seed)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        optimizer.step()
        schedule.step()
    return losses


def has_diverged(losses: list[float]) -> bool:
    """Return whether a loss was no number, or the last tenth is far above the first tenth; the latter from 10 steps."""
    if not all(map(math.isfinite, losses)):
        return True
    few = len(losses) // 10
    return len(losses) >= FEW and statistics.mean(losses[-few:]) > statistics.mean(losses[:few]) + FAR


def thinned(losses: list[float]) -> tuple[float, ...]:
    """Return at most 20 means over equal stretches of steps."""
    length = max(1, -(-len(losses) // MEANS))
    return tuple(round(statistics.fmean(losses[at : at + length]), 5) for at in range(0, len(losses), length))


def _memory(device: str, *, peak: bool = False) -> float:
    """Return the bytes of the process, or of the device, now or at their peak."""
    if device != "cpu":
        return float(torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated())
    if peak:
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return float(pages * resource.getpagesize())
