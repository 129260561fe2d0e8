"""The table of events, with how often each is drawn; running a list of them; the shortest list that fails."""

import random
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from tests.torch.walk import adapters, calls, copies, tracing, user, weights
from tests.torch.walk.kinds import KINDS
from tests.torch.walk.walk import Walk

Event = Callable[[Walk, random.Random], str | None]
INSIDE: tuple[Event, ...] = (
    calls.train,
    weights.merge,
    user.delta,
    copies.state_dict,
    tracing.call_compiled,
    weights.cast,
)


def disable(walk: Walk, rng: random.Random) -> str | None:
    return weights.disable(walk, rng, rng.choice((None, *INSIDE)))


EVENTS: dict[str, tuple[Event, float]] = {
    "attach": (adapters.attach, 4),
    "attach a second": (adapters.attach_second, 3),
    "attach to a part": (adapters.attach_nested, 2),
    "attach after outer": (adapters.attach_outer, 2),
    "attach a shared family": (adapters.attach_with("shared"), 2),
    "attach tasks": (adapters.attach_with("tasks"), 2),
    "attach what reads the weight": (adapters.attach_with("readers"), 1.5),
    "attach blocks": (adapters.attach_with("blocks"), 1),
    "attach fused": (adapters.attach_with("fused"), 2),
    "attach folded": (adapters.attach_with("fold"), 1.5),
    "attach to parameters": (adapters.attach_with("parameters"), 1.5),
    "attach with modules to save": (adapters.attach_with("saved"), 2),
    "attach refused": (adapters.attach_refused, 1),
    "detach": (adapters.detach, 2),
    "detach merged": (adapters.detach_merged, 1.5),
    "merge": (weights.merge, 3),
    "unmerge": (weights.unmerge, 3),
    "merge and back": (weights.merge_and_back, 2),
    "disable": (disable, 3),
    "set task": (weights.set_task, 3),
    "cast": (weights.cast, 1),
    "cast to bfloat16": (weights.cast_low, 0.5),
    "cast and rebind": (weights.cast_rebinding, 1),
    "cast and swap": (weights.cast_swapping, 1),
    "move": (weights.move, 1),
    "train": (calls.train, 4),
    "accumulate": (calls.accumulate, 1),
    "checkpoint, reentrant": (calls.checkpointed("reentrant"), 1),
    "checkpoint, non-reentrant": (calls.checkpointed("non-reentrant"), 1),
    "second derivative": (calls.penalize, 0.7),
    "detect anomaly": (calls.anomaly, 0.5),
    "autocast": (calls.under_autocast, 1),
    "inference_mode": (calls.within(torch.inference_mode), 1),
    "no_grad": (calls.within(torch.no_grad, torch.enable_grad), 1),
    "eager call": (calls.within(nullcontext), 1),
    "train or eval": (calls.switch_mode, 1),
    "thread": (calls.threads, 1.5),
    "empty batch": (calls.shaped((0, 3)), 1),
    "one token": (calls.shaped((1, 1)), 1),
    "more axes": (calls.shaped((2, 2, 3), (1, 2, 1, 2)), 1),
    "one axis less": (calls.shaped((3,)), 1),
    "strided input": (calls.strided, 1),
    "keyword": (calls.by_keyword, 1),
    "compile": (tracing.compile_whole, 1),
    "call compiled": (tracing.call_compiled, 4),
    "compile blocks": (tracing.compile_blocks, 0.4),
    "fake": (tracing.fake, 1),
    "make_fx": (tracing.trace, 0.5),
    "functional": (tracing.functional, 1),
    "vmap": (tracing.mapped, 1),
    "forward mode": (tracing.forward_mode, 0.5),
    "deepcopy": (copies.deepcopy, 1.5),
    "deepcopy, keep both": (copies.deepcopy_both, 2),
    "pickle": (copies.pickled, 1),
    "torch.save": (copies.saved_by_torch, 1),
    "state dict": (copies.state_dict, 1),
    "assign": (copies.assign, 1),
    "take a snapshot": (copies.take_snapshot, 1.5),
    "load a snapshot": (copies.load_snapshot, 2),
    "save and load": (copies.save_and_load, 2),
    "LoRA folder": (copies.save_as_lora, 1.5),
    "hook after": (user.hook("after"), 0.7),
    "hook before": (user.hook("before"), 0.7),
    "remove a hook": (user.unhook, 0.7),
    "unfreeze": (user.unfreeze, 1),
    "freeze a factor": (user.freeze_factor, 1),
    "freeze the whole": (user.freeze_whole, 0.7),
    "parametrize": (user.parametrize_weight, 1),
    "remove a parametrization": (user.unparametrize, 1),
    "weight_norm": (user.norm_weight, 0.5),
    "replace a module": (user.replace_module, 1),
    "tell": (user.tell, 1),
    "delta": (user.delta, 1),
    "norms": (user.norms, 1),
}
FIRST = tuple(name for name in EVENTS if name.startswith("attach") and name != "attach refused")


class WalkError(AssertionError):
    """A walk went wrong at some event; the message has the events up to there."""

    def __init__(self, message: str, event: str) -> None:
        super().__init__(message)
        self.event = event


def plan(seed: int) -> tuple[str, list[str]]:
    """Draw a host and the names of events."""
    rng = random.Random(f"walk {seed}")
    names, chances = list(EVENTS), [chance for _, chance in EVENTS.values()]
    begin = [*rng.choices(names, chances, k=rng.randint(0, 2)), rng.choice(FIRST)]
    return rng.choice(sorted(KINDS)), [*begin, *rng.choices(names, chances, k=rng.randint(5, 14))]


def run(kind: str, steps: Sequence[tuple[int, str]], seed: int, folder: Path) -> list[str]:
    """Run events, each with random numbers of its own, so that dropping one leaves the others as they are.

    Returns what was done.

    Raises:
        WalkError: a check failed, or an event raised an error that it must not raise.
    """
    log, name = [f"host: {kind}"], ""
    walk = Walk(kind, seed, folder)
    try:
        walk.check(random.Random(0))
        for number, name in steps:
            rng = random.Random(f"{seed} {number} {name}")
            log.append(f"{number} {name}: ...")
            told = EVENTS[name][0](walk, rng)
            if told is None:
                log.pop()  # there was nothing to do it with
                continue
            log[-1] = f"{number} {name}: {told}"
            if walk.is_over:
                return log
            walk.check(rng)
        name = "close"
        log.append(name)
        walk.close(random.Random(f"{seed} close"))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        raise WalkError("\n".join([*log, told]), name) from error
    finally:
        if walk.has_compiled:
            torch._dynamo.config.skip_nnmodule_hook_guards = True
            torch.compiler.reset()
    return log


def shrink(kind: str, steps: list[tuple[int, str]], seed: int, folder: Path) -> tuple[list[tuple[int, str]], WalkError]:
    """Drop events as long as the walk still fails; return those that are left and how they fail."""
    failed = None
    for at in reversed(range(len(steps))):
        fewer = steps[:at] + steps[at + 1 :]
        try:
            run(kind, fewer, seed, folder)
        except WalkError as error:
            steps, failed = fewer, error
    return steps, failed
