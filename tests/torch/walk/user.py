"""Events in which the user does to the host what users do: hooks, flags, parametrizations, other modules."""

import contextlib
import io
import random
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import tnadapt
from tests.torch.walk import oracle
from tests.torch.walk.walk import Walk
from tests.torch.walk.weights import pick
from tnadapt import SiteError

# ---- hooks


class Scaling:
    """A hook that scales: a class, so that it can be copied and pickled with the model."""

    def __init__(self, when: str, factor: float) -> None:
        self.when, self.factor = when, factor

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], *output: Tensor) -> Any:
        if self.when == "before":
            return (args[0] * self.factor, *args[1:])
        return output[0] * self.factor + 0.25


def hook(when: str) -> Callable[[Walk, random.Random], str]:
    def event(walk: Walk, rng: random.Random) -> str:
        """Register the user's own hook, on an adapted layer as well as on others, before or after the earlier ones."""
        forget_compiled(walk)
        path = rng.choice([*walk.kind.linears, *walk.kind.blocks])
        module, factor, first = walk.host(path), rng.choice([0.5, 1.25, -1.0]), rng.random() < 0.3
        register = module.register_forward_pre_hook if when == "before" else module.register_forward_hook
        register(Scaling(when, factor), prepend=first)
        known = walk.book.hooks.setdefault(path, [])
        known.insert(0 if first else len(known), (when, factor))
        return f"{path} {factor}{' first' if first else ''}"

    return event


def unhook(walk: Walk, rng: random.Random) -> str | None:
    """Remove one of the user's own hooks."""
    paths = sorted(path for path, hooks in walk.book.hooks.items() if hooks)
    if not paths:
        return None
    forget_compiled(walk)
    path = rng.choice(paths)
    hooks = walk.book.hooks[path]
    when, factor = hooks.pop(rng.randrange(len(hooks)))
    table = getattr(walk.host(path), "_forward_pre_hooks" if when == "before" else "_forward_hooks")
    mine = [key for key, one in table.items() if isinstance(one, Scaling) and (one.when, one.factor) == (when, factor)]
    del table[mine[0]]
    return path


def forget_compiled(walk: Walk) -> None:
    """Drop compiled code: torch.compile does not see that the user's hooks changed."""
    walk.uncompile_blocks()
    if walk.has_compiled:
        walk.compiled = []
        torch.compiler.reset()


# ---- flags


def unfreeze(walk: Walk, rng: random.Random) -> str:
    """Ask for the gradient of a parameter of the host, or of all of a module."""
    free = sorted(walk.book.flags)
    chosen = rng.sample(free, rng.randint(1, 2))
    for key in chosen:
        walk.model.get_parameter(key).requires_grad_(True)
        walk.book.unfreeze(key)
    return ", ".join(chosen)


def freeze_factor(walk: Walk, rng: random.Random) -> str | None:
    if (name := pick(walk, rng)) is None:
        return None
    entry, state = walk.book.entries[name], walk.states()[name]
    trained = sorted(key for key, value in state.params().items() if value.requires_grad)
    if len(trained) < 2:
        return None
    key = rng.choice(trained)
    state.params()[key].requires_grad_(False)
    entry.frozen.add(key)
    return f"{name} {key}"


def freeze_whole(walk: Walk, rng: random.Random) -> str:
    """Freeze the whole model, adapters included, and sometimes one of the adapters not."""
    walk.model.requires_grad_(False)
    walk.book.freeze()
    for name, state in walk.states().items():
        walk.book.entries[name].frozen = {key for key, v in state.params().items() if isinstance(v, nn.Parameter)}
    if (name := pick(walk, rng)) is not None and rng.random() < 0.7:
        walk.states()[name].requires_grad_(True)
        walk.book.entries[name].frozen = set()
        return f"except {name}"
    return ""


# ---- parametrizations


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return oracle.SCALED * weight


def free_weights(walk: Walk, *, wrapped: bool = False) -> list[str]:
    """Return the weights of linear layers that the user may parametrize."""
    keys = [f"{path}.weight" for path in walk.kind.linears]
    taken = walk.book.saved() | {name for merge in walk.book.merges for name in merge.originals}
    return [
        key
        for key in keys
        if not walk.book.is_shared(key) and not taken & {key} and (wrapped or key not in walk.book.wraps)
    ]


def parametrize_weight(walk: Walk, rng: random.Random) -> str | None:
    """Parametrize a weight that is adapted or will be, or that an adapter folded its update into."""
    keys = [
        key for key in free_weights(walk, wrapped=True) if not {"scaled", "normed"} & set(walk.book.wraps.get(key, ()))
    ]
    if not keys:
        return None
    key = rng.choice(keys)
    parametrize.register_parametrization(walk.host(key.rpartition(".")[0]), "weight", Scaled())
    walk.book.wrap(key, "scaled")
    walk.note_idents()
    return key


def unparametrize(walk: Walk, rng: random.Random) -> str | None:
    """Remove the user's own parametrization, where no update was folded into the same weight."""
    keys = sorted(key for key, wraps in walk.book.wraps.items() if wraps == ["scaled"])
    if not keys:
        return None
    key = rng.choice(keys)
    parametrize.remove_parametrizations(walk.host(key.rpartition(".")[0]), "weight", leave_parametrized=False)
    walk.book.unwrap(key, "scaled")
    walk.note_idents()
    return key


def norm_weight(walk: Walk, rng: random.Random) -> str | None:
    """Give a weight torch's weight_norm, which computes it from two tensors. It stays to the end."""
    keys = free_weights(walk)
    if not keys:
        return None
    key = rng.choice(keys)
    parametrizations.weight_norm(module := walk.host(key.rpartition(".")[0]))
    walk.book.norm(key, [one.detach().clone() for one in module.parametrizations.weight.parameters()])
    walk.note_idents()
    return key


# ---- other modules


def replace_module(walk: Walk, rng: random.Random) -> str | None:
    """Put another layer in the place of an adapted one: whatever reads or writes the weight must notice."""
    if (name := pick(walk, rng, merged=False)) is None:
        return None
    entry, state = walk.book.entries[name], walk.states()[name]
    paths = [
        key.rpartition(".")[0] for key in entry.weights.values() if key.removesuffix(".weight") in walk.kind.linears
    ]
    if not paths:
        return None
    path = rng.choice(sorted(paths))
    owner, _, word = path.rpartition(".")
    old = walk.host(path)
    new = nn.Linear(3, 3, dtype=walk.book.dtype)
    setattr(walk.host(owner), word, new)
    relative = next(at for at, key in entry.weights.items() if key == f"{path}.weight")
    acts = {
        "save": lambda: state.save(walk.folder / "replaced.safetensors"),
        "merge": state.merge,
        "norms": state.norms,
        "delta": lambda: state.delta(relative),
    }
    try:
        for what, act in acts.items():
            error = error_of(act)
            assert relative in error, f"{what} does not say that {path} is another module: {error or 'no error'}"
    finally:
        with contextlib.suppress(SiteError):  # a merge that was not refused
            state.unmerge()
        setattr(walk.host(owner), word, old)
    return path


def error_of(act: Callable[[], Any]) -> str:
    try:
        act()
    except SiteError as error:
        return str(error)
    return ""


# ---- what the state tells


def tell(walk: Walk, rng: random.Random) -> str | None:
    """Print the state, its table and its numbers."""
    if (name := pick(walk, rng)) is None:
        return None
    state = walk.states()[name]
    table = state.table()
    assert all(site.path in table for site in state.adapter.sites)
    assert state.spec.name in repr(state)
    told = set()
    outermost = outermost_of(walk, name)
    for one in walk.states().values():
        if outermost_of(walk, one.name) == outermost:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                one.print_trainable_parameters()
            first, *note = out.getvalue().splitlines()  # a large first step is told below, once
            told.add(re.fullmatch(r"trainable params: ([\d,]+) \|\| all params: ([\d,]+) .*", first).groups())
            assert not note or note[0].startswith(f"adapter {one.name!r}: the first step of Adam")
    trained = sum(value.numel() for value in walk.host(outermost).parameters() if value.requires_grad)
    assert {int(first.replace(",", "")) for first, _ in told} == {trained}
    assert len(told) == 1, f"the adapters of one host tell different totals: {told}"
    return name


def outermost_of(walk: Walk, name: str) -> str:
    """Return the path of the largest adapted module that has the host of an adapter."""
    own = walk.book.entries[name].host
    hosts = {entry.host for entry in walk.book.entries.values()}
    return min((host for host in hosts if f"{own}.".startswith(f"{host}.") or not host), key=len)


def delta(walk: Walk, rng: random.Random) -> str | None:
    """Ask for the dense update of every weight, whether or not it is added at present."""
    if (name := pick(walk, rng)) is None:
        return None
    entry, state = walk.book.entries[name], walk.states()[name]
    values = oracle.values_at(walk.book, state)
    if entry.merge and entry.reads:  # the weight that it reads is no longer there
        walk.attempt(lambda: state.delta(next(iter(entry.weights))), "always")
        return f"{name} refused"
    for path, key in entry.weights.items():
        found = state.delta(path)
        wide = torch.promote_types(walk.book.dtype, torch.float32)
        assert found.dtype == wide, f"delta of {path} is {found.dtype}"
        wanted = oracle.update_of(entry, path, state.adapter, values)
        tolerance = entry.error + (1e-10 if wide == torch.float64 else 1e-5)
        terms = oracle.terms_of(entry, path, state.adapter, values)
        oracle.assert_close(found, wanted, tolerance, f"delta of {path}", terms)
        assert key in entry.layouts
    return name


def norms(walk: Walk, rng: random.Random) -> str | None:
    """Compare the norms with those of all factors and of the dense updates of all sites."""
    if (name := pick(walk, rng)) is None:
        return None
    entry, state = walk.book.entries[name], walk.states()[name]
    if entry.merge and entry.reads:
        walk.attempt(state.norms, "always")
        return f"{name} refused"
    values, found = oracle.values_at(walk.book, state), state.norms()
    total = sum((tnadapt.delta(state.adapter, values, site) ** 2).sum() for site in state.adapter.sites) ** 0.5
    assert abs(found["dW"] - total) <= (1e-4 + entry.error) * total + 1e-6, (
        f"norm of the update: {found['dW']}, not {total}"
    )
    return name
