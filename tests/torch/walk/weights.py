"""Events that change what the host's weights hold: merge, unmerge, disable, tasks, casts, moves, assignment."""

import random
from collections.abc import Callable

import torch

from tests.torch.walk import oracle
from tests.torch.walk.walk import Walk

TIGHT = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}  # one rounding of a sum


def pick(walk: Walk, rng: random.Random, *, merged: bool | None = None) -> str | None:
    """Draw the name of an adapter that is merged, that is not, or any."""
    names = [name for name, one in walk.book.entries.items() if merged is None or (one.merge is not None) == merged]
    return rng.choice(sorted(names)) if names else None


def merge(walk: Walk, rng: random.Random) -> str | None:
    if (name := pick(walk, rng)) is None:
        return None
    entry, state = walk.book.entries[name], walk.states()[name]
    values = oracle.values_at(walk.book, walk.states()[name])
    user = [key for key in entry.weights.values() if {"scaled", "normed"} & set(walk.book.wraps.get(key, ()))]
    foreign = [key for key in entry.weights.values() if set(walk.book.wraps.get(key, ())) - {name}]
    always = entry.merge is not None or user or any(walk.book.is_shared(key) for key in entry.weights.values())
    always = always or walk.book.is_read(entry)
    if not walk.attempt(state.merge, "always" if always else "maybe" if foreign else "never"):
        return f"{name} refused"
    book, parts = walk.book, {key: walk.book.stored(key)[0] for key in entry.weights.values()}
    book.merge(name, {key: oracle.update_of(entry, path, state.adapter, values) for path, key in entry.weights.items()})
    held = walk.model.state_dict()
    for path, key in entry.weights.items():
        tolerance, place = TIGHT[book.dtype] + entry.error, parts[key]
        terms = oracle.terms_of(entry, path, state.adapter, values)
        oracle.assert_close(held[place], book.tensors[place], tolerance, f"{key} after merge", terms)
        book.tensors[place] = held[place].detach().clone()  # the last bit is the library's
    return name


def unmerge(walk: Walk, rng: random.Random) -> str | None:
    if (name := pick(walk, rng)) is None:
        return None
    entry = walk.book.entries[name]
    wrapped = entry.merge and any(set(walk.book.wraps.get(key, ())) - {name} for key in entry.weights.values())
    always = entry.merge is None or walk.book.is_buried(name)
    refusal = "always" if always else "maybe" if wrapped else "never"
    if not walk.attempt(walk.states()[name].unmerge, refusal):
        return f"{name} refused"
    walk.book.unmerge(name)
    return name


def merge_and_back(walk: Walk, rng: random.Random) -> str | None:
    """Merge and unmerge at once: every bit is as before."""
    before = {key: value.clone() for key, value in walk.book.tensors.items()}
    if (name := merge(walk, rng)) is None or name.endswith("refused"):
        return name
    walk.check(rng)
    walk.states()[name].unmerge()
    walk.book.unmerge(name)
    assert all(torch.equal(before[key], value) for key, value in walk.book.tensors.items())
    return name


def disable(
    walk: Walk, rng: random.Random, inner: Callable[[Walk, random.Random], str | None] | None = None
) -> str | None:
    """Disable an adapter in a block, sometimes twice, and do something else inside."""
    if (name := pick(walk, rng)) is None:
        return None
    entry, state = walk.book.entries[name], walk.states()[name]
    if entry.merge is not None:
        walk.attempt(lambda: state.disabled().__enter__(), "always")
        return f"{name} refused"
    told = ""
    with state.disabled():
        walk.book.swap(entry)
        entry.is_enabled = False
        walk.check(rng)
        if rng.random() < 0.5:
            with state.disabled():
                walk.check(rng)
            walk.check(rng)
        if inner:
            told = f", inside: {inner.__name__} {inner(walk, rng)}"
            walk.check(rng)
    entry.is_enabled = True
    walk.book.swap(entry)
    return name + told


def set_task(walk: Walk, rng: random.Random) -> str | None:
    having = sorted(name for name, entry in walk.book.entries.items() if len(entry.tasks) > 1)
    if not having:
        return None
    entry, state = walk.book.entries[name := rng.choice(having)], walk.states()[name]
    walk.attempt(lambda: state.set_task("unknown"), "always")
    task = rng.choice(entry.tasks)
    if entry.merge and task == entry.task:
        state.set_task(task)
        return f"{name} {task}, as before"
    # Of a merged adapter the weights hold the update of the old task: an error, unless the new one takes its place.
    if not walk.attempt(lambda: state.set_task(task), "maybe" if entry.merge else "never"):
        return f"{name} refused"
    if entry.merge:
        walk.book.unmerge(name)
        values = oracle.values_at(walk.book, walk.states()[name])
        entry.task = task
        walk.book.merge(
            name, {key: oracle.update_of(entry, path, state.adapter, values) for path, key in entry.weights.items()}
        )
    entry.task = task
    return f"{name} {task}"


# ---- casts and moves


def cast(walk: Walk, rng: random.Random) -> str:
    """Cast the whole model by one of the ways to write it."""
    dtype, way = rng.choice(
        [
            (torch.float64, lambda model: model.double()),
            (torch.float64, lambda model: model.to(torch.float64)),
            (torch.float32, lambda model: model.float()),
            (torch.float32, lambda model: model.to(dtype=torch.float32, device="cpu")),
        ]
    )
    way(walk.model)
    walk.note_cast(dtype)
    return str(dtype)


def cast_low(walk: Walk, rng: random.Random) -> str:
    """Cast to bfloat16, and back at once or later."""
    walk.model.bfloat16()
    walk.note_cast(torch.bfloat16)
    if rng.random() < 0.4:
        return "there"
    walk.check(rng)
    walk.model.double()
    walk.note_cast(torch.float64)
    return "there and back"


def cast_rebinding(walk: Walk, rng: random.Random) -> str | None:
    """Cast with new parameters in place of the old ones, as torch does on request."""
    if walk.kind.aliases:  # torch then unties what is tied
        return None
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        dtype = torch.float64 if walk.book.dtype == torch.float32 else torch.float32
        walk.model.to(dtype)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    walk.note_cast(dtype)
    walk.note_idents()
    return str(dtype)


def cast_swapping(walk: Walk, rng: random.Random) -> str | None:
    """Cast with the tensors swapped under their objects, as torch does on request."""
    if walk.has_traced:  # torch holds on to what it traced, and then swaps nothing, on a model without adapters too
        return None
    walk.model.zero_grad(set_to_none=True)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        dtype = torch.float64 if walk.book.dtype == torch.float32 else torch.float32
        walk.model.to(dtype)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    walk.note_cast(dtype)
    return str(dtype)


def move(walk: Walk, rng: random.Random) -> str:
    rng.choice([lambda: walk.model.to("cpu"), walk.model.cpu, lambda: walk.model.to(torch.device("cpu"))])()
    return "cpu"
