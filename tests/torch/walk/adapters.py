"""Attach and detach: an adapter of a random family on random weights, with one of the special arguments or none."""

import random
from collections.abc import Callable
from typing import Any

import torch

import tnadapt_torch
from tests.table import FAMILIES, Case
from tests.torch.walk import oracle
from tests.torch.walk.book import Entry
from tests.torch.walk.walk import Walk
from tnadapt import AdapterSpec, SiteError, magnitude
from tnadapt_torch import AdapterState

SHARED = ("lotr", "lorta", "vera", "tlora", "metatt", "fact_tt", "tera", "lotr_tt", "cara", "tenslora")
ALONE = ("lora", "lora stabilized", "loha", "lokr", "krona", "householder", "pissa", "lora_xs svd", "monarch", "abba")
READERS = ("dora", "hira", "oft", "losa", "dora lotr")  # the host's weight is a factor, or a magnitude reads it
CENTERED = ("tt_lora centered", "loretta centered", "lotr svd", "lotr neutral", "quanta 2", "dota", "randlora")
TASKS = ("chat", "code", "maths")


CASES = FAMILIES | {
    "dora": Case(magnitude(FAMILIES["lora"].spec)),
    "dora lotr": Case(magnitude(FAMILIES["lotr"].spec), {"p": 2, "q": 3}),
}


def reads_weight(spec: AdapterSpec) -> bool:
    """Return whether the update of a spec depends on the host's weight at each call."""
    return bool(spec.magnitude or spec.hosts)


def join(*path: str) -> str:
    return ".".join(word for word in path if word)


def below(host: str, paths: Any) -> list[str]:
    """Return the paths that lie under a host, relative to it."""
    return [
        path.removeprefix(f"{host}.") if host else path for path in paths if not host or path.startswith(f"{host}.")
    ]


# ---- drawing the arguments


def draw_targets(walk: Walk, rng: random.Random, host: str) -> tuple[Any, list[str]]:
    """Draw target_modules and say which layers it names: suffixes, whole paths, or a regular expression."""
    taken = walk.book.saved()
    free = [path for path in walk.kind.linears if not taken & set(walk.book.stored(f"{path}.weight"))]
    known, allowed = below(host, walk.kind.linears), below(host, free)
    ends = sorted(
        {path.rpartition(".")[2] for path in allowed}
        - {path.rpartition(".")[2] for path in known if path not in allowed}
    )
    chosen = rng.sample(ends, rng.randint(1, min(3, len(ends))))
    named = [path for path in known if path.rpartition(".")[2] in chosen]
    if rng.random() < 0.3:
        named = sorted(rng.sample(named, rng.randint(1, len(named))), key=known.index)
        return named, named
    if rng.random() < 0.2:
        return rf"(.*\.)?({'|'.join(chosen)})", named
    return chosen, named


def draw_saved(walk: Walk, rng: random.Random, host: str, adapted: set[str]) -> list[str]:
    """Draw modules to train in full that no adapter has touched."""
    used = adapted | walk.book.adapted() | walk.book.merged()
    taken = walk.book.saved() | {name for key in used for name in walk.book.stored(key)}
    free = [
        path
        for path in walk.kind.saveable
        if not taken & set(walk.book.module_keys(path))
        and not any(key.startswith(f"{path}.") for key in walk.book.wraps)
    ]
    return rng.sample(below(host, free), 1) if below(host, free) else []


def add_special(
    walk: Walk, rng: random.Random, want: str, host: str, *, words: dict[str, Any], named: list[str]
) -> bool:
    """Add the special argument that is wanted. Return False if this host has nothing for it."""
    if want == "tasks":
        words["tasks"] = list(TASKS[: rng.randint(2, 3)])
    elif want == "blocks":
        words["blocks"] = {rng.choice(named): rng.choice([(2, 1), (1, 2), (2, 2)])}
    elif want == "fused":
        fused = [name for name in walk.kind.fused if any(path.endswith(name) for path in named)]
        words["fused"] = {name: walk.kind.fused[name] for name in fused}
    elif want == "saved":
        words["modules_to_save"] = draw_saved(walk, rng, host, {f"{join(host, path)}.weight" for path in named})
    elif want == "fold":
        words["fold"] = True
    elif want == "parameters":
        layouts = below(host, walk.kind.parameters)
        chosen = rng.sample(layouts, rng.randint(1, len(layouts))) if layouts else []
        words["target_parameters"] = {path: " ".join(walk.kind.layout(join(host, path))) for path in chosen}
        if rng.random() < 0.5:
            words["target_modules"] = None
    return bool(
        {"shared": True, "alone": True, "readers": True}.get(want) or any(words.get(word) for word in ARGUMENT[want])
    )


ARGUMENT = {
    "": ("seed",),
    "tasks": ("tasks",),
    "blocks": ("blocks",),
    "fused": ("fused",),
    "saved": ("modules_to_save",),
    "fold": ("fold",),
    "parameters": ("target_parameters",),
}


def refusal(walk: Walk, words: dict[str, Any], keys: list[str], case: Case) -> str:
    """Say whether an attach is refused."""
    if reads_weight(case.spec) and walk.book.merged() & set(keys):
        return "always"
    folded = keys if words.get("fold") else [key for key in keys if key in walk.kind.parameters]
    if any(key in walk.book.wraps for key in folded) or (folded and walk.book.dtype == torch.bfloat16):
        return "always"
    return "never"


# ---- events


def attach(walk: Walk, rng: random.Random, want: str = "", host: str = "") -> str | None:
    """Attach an adapter, give its factors values at which its update is not zero, and enter it in the book."""
    if len(walk.book.entries) >= 3:
        return None
    families = {"shared": SHARED, "alone": ALONE, "readers": READERS, "fold": ALONE + SHARED + READERS}.get(
        want, SHARED + ALONE + CENTERED + READERS
    )
    case = CASES[family := rng.choice(families)]
    target, named = draw_targets(walk, rng, host)
    words: dict[str, Any] = {"target_modules": target, "seed": rng.randrange(100)}
    if not add_special(walk, rng, want, host, words=words, named=named):
        return None
    if words["target_modules"] is None:
        named = []
    name = f"a{walk.count}"
    keys = {path: f"{join(host, path)}.weight" for path in named}
    keys |= {path: join(host, path) for path in words.get("target_parameters", ())}
    entry = Entry(
        name=name,
        host=host,
        weights=keys,
        layouts={key: walk.kind.layout(key) for key in keys.values()},
        folded={key for key in keys.values() if words.get("fold") or key in walk.kind.parameters},
        saved={
            key: walk.book.tensors[key]
            for path in words.get("modules_to_save", ())
            for key in walk.book.module_keys(join(host, path))
        },
        tasks=tuple(words.get("tasks", ("",))),
    )
    entry.task = entry.tasks[0]
    entry.has_map = any(factor.map for factor in case.spec.factors.values())
    entry.reads = reads_weight(case.spec)

    def act() -> None:
        state = tnadapt_torch.attach(
            walk.host(host),
            case.spec,
            rank=case.rank,
            sizes=case.sizes,
            overparametrized=True,
            adapter_name=name,
            **words,
        )
        assert set(state.adapter.weights) == set(keys), f"adapted {sorted(state.adapter.weights)}, not {sorted(keys)}"

    if not walk.attempt(act, refusal(walk, words, list(keys.values()), case)):
        return f"{family} refused: {words}"
    walk.count += 1
    slots = walk.states()[name].adapter.slots
    entry.magnitudes = {key for key, slot in slots.items() if slot.factor.init.is_magnitude}
    walk.book.attach(entry)
    walk.note_values()
    walk.check(rng)  # at its start an adapter changes nothing, or what the oracle says
    wake(walk, walk.states()[name], rng)
    if rng.random() < 0.5:
        walk.states()[name].double()
    walk.note_values()
    walk.note_idents()
    return f"{name} = {family} on {host or 'the whole'}: {words}"


def wake(walk: Walk, state: AdapterState, rng: random.Random) -> None:
    """Give the trainable factors random values, and the update a size at which its loss would be seen."""
    entry = walk.book.entries[state.name]
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    trained = {value: value.detach().clone() for value in state.params().values() if value.requires_grad}
    noise = {value: torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in trained}
    size, step = 0.0, 0.5
    while not 0.0 < size <= 0.5 and step > 1e-3:
        with torch.no_grad():
            for value, start in trained.items():
                value.copy_(start + step * noise[value])
        values = oracle.values_at(walk.book, state)
        size = max(oracle.update_of(entry, path, state.adapter, values).abs().max().item() for path in entry.weights)
        step /= 2
    if size < 0.1 and not entry.has_map and state.spec.start != "centered":
        with torch.no_grad():
            next(iter(trained)).mul_(0.3 / max(size, 1e-3))


def attach_second(walk: Walk, rng: random.Random) -> str | None:
    return attach(walk, rng, rng.choice(["", "shared", "alone", "saved"])) if walk.book.entries else None


def attach_nested(walk: Walk, rng: random.Random) -> str | None:
    inner = [path for path in walk.kind.parents if path]
    return attach(walk, rng, rng.choice(["", "shared", "alone"]), rng.choice(inner)) if inner else None


def attach_outer(walk: Walk, rng: random.Random) -> str | None:
    """Attach to the whole model after an adapter was attached to a part of it."""
    return attach(walk, rng, rng.choice(["", "shared"])) if any(e.host for e in walk.book.entries.values()) else None


def attach_with(want: str) -> Callable[[Walk, random.Random], str | None]:
    def event(walk: Walk, rng: random.Random) -> str | None:
        return attach(walk, rng, want, rng.choice(walk.kind.parents) if rng.random() < 0.3 else "")

    return event


def attach_refused(walk: Walk, rng: random.Random) -> str:
    """Try to attach what cannot be attached; the check that follows sees whether anything stayed."""
    linear = rng.choice(below("", walk.kind.linears))
    wrong: dict[str, dict[str, Any]] = {
        "an unknown target": {"target_modules": [linear, "nothing"]},
        "an unknown module to save": {"target_modules": [linear], "modules_to_save": ["nothing"]},
        "an adapted module to save": {"target_modules": [linear], "modules_to_save": [linear]},
        "a name that is no name": {"target_modules": [linear], "adapter_name": "a b"},
        "folding with dropout": {"target_modules": [linear], "fold": True, "dropout": 0.1},
        "blocks that do not divide": {"target_modules": [linear], "blocks": {linear: (5, 1)}},
    }
    if here := [entry.name for entry in walk.book.entries.values() if not entry.host]:
        wrong["a name in use"] = {"target_modules": [linear], "adapter_name": here[0]}
    what = rng.choice(sorted(wrong))
    words = {"adapter_name": "new", "rank": 2, "seed": 0, "overparametrized": True} | wrong[what]
    walk.attempt(lambda: tnadapt_torch.attach(walk.model, "lotr", **words), "always")
    return what


def detach(walk: Walk, rng: random.Random) -> str | None:
    """Detach any adapter, merged or not; afterwards its state answers every call with an error."""
    if not walk.book.entries:
        return None
    name = rng.choice(sorted(walk.book.entries))
    state, was_merged = walk.states()[name], walk.book.entries[name].merge is not None
    state.detach()
    walk.book.detach(name)
    walk.note_idents()
    for act in (state.detach, state.merge, state.unmerge, state.print_trainable_parameters):
        walk.attempt(act, "always", SiteError)
    return f"{name}{' merged' if was_merged else ''}"


def detach_merged(walk: Walk, rng: random.Random) -> str | None:
    """Detach an adapter whose update is in the weights: the update stays."""
    merged = sorted(name for name, entry in walk.book.entries.items() if entry.merge)
    if not merged:
        return None
    name = rng.choice(merged)
    walk.states()[name].detach()
    walk.book.detach(name)
    walk.note_idents()
    return name
