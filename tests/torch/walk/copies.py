"""Events that copy the model or write it somewhere: deepcopy, pickle, state dicts, files."""

import copy
import io
import pickle
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import tnadapt_torch
from tests.torch.walk import oracle
from tests.torch.walk.book import Book, Entry
from tests.torch.walk.calls import train
from tests.torch.walk.walk import Walk, is_ours, states_of
from tests.torch.walk.weights import pick
from tnadapt import FormatError, PlanError, SiteError
from tnadapt._language import without_magnitude
from tnadapt_torch import AdapterState

THIN = ("lora", "lotr", "vera", "tlora", "lorta", "metatt", "fact_tt", "lotr_tt", "mtlora_tasks", "loha")  # exact LoRAs


# ---- the model as a whole


def go_on_with(walk: Walk, model: nn.Module) -> None:
    walk.uncompile_blocks()
    walk.model, walk.compiled = model, []
    walk.note_idents()


def deepcopy(walk: Walk, rng: random.Random) -> str:
    """Go on with a copy, and drop the model."""
    go_on_with(walk, copy.deepcopy(walk.model))
    return "dropped the model"


def deepcopy_both(walk: Walk, rng: random.Random) -> str | None:
    """Go on with a copy or with the model; the other one must not change until the end."""
    users = any({"scaled", "normed"} & set(wraps) for wraps in walk.book.wraps.values())
    if users or len(walk.others) > 1:  # copies of what the user parametrized share a class, as torch made it
        return None
    twin = copy.deepcopy(walk.model), copy.deepcopy(walk.book)
    if rng.random() < 0.5:
        walk.others.append((walk.model, walk.book))
        walk.book = twin[1]
        go_on_with(walk, twin[0])
        return "kept the model"
    walk.others.append(twin)
    return "kept the copy"


def pickled(walk: Walk, rng: random.Random) -> str | None:
    if walk.book.wraps:  # torch cannot pickle a parametrized module
        return None
    go_on_with(walk, pickle.loads(pickle.dumps(walk.model)))
    return ""


def saved_by_torch(walk: Walk, rng: random.Random) -> str | None:
    if walk.book.wraps:
        return None
    file = io.BytesIO()
    torch.save(walk.model, file)
    file.seek(0)
    go_on_with(walk, torch.load(file, weights_only=False))
    return ""


# ---- state dicts


def clone(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value) for key, value in values.items()}


def state_dict(walk: Walk, rng: random.Random) -> str:
    """Write the state dict, spoil every factor, and read it back."""
    before = clone(walk.model.state_dict())
    with torch.no_grad():
        for state in walk.states().values():
            for value in state.params().values():
                value.mul_(-0.5)
    result = walk.model.load_state_dict(clone(before), strict=True)
    assert result.missing_keys == result.unexpected_keys == []
    return f"{len(before)} keys"


def assign(walk: Walk, rng: random.Random) -> str | None:
    """Load with assign=True: the parameters of the host, or of everything, become other objects."""
    if walk.kind.aliases:  # that unties what is tied
        return None
    whole = rng.random() < 0.5
    values = {key: value for key, value in clone(walk.model.state_dict()).items() if whole or not is_ours(key)}
    is_marked = any(entry.merge or not entry.is_trained for entry in walk.book.entries.values())
    refusal = "maybe" if is_marked and not whole else "never"  # the host's tensors alone do not say what is in them
    if not walk.attempt(lambda: walk.model.load_state_dict(values, strict=whole, assign=True), refusal):
        return "refused"
    walk.compiled = []
    walk.note_idents()
    return "everything" if whole else "the host"


@dataclass
class Snapshot:
    """A state dict, and what the model computed when it was taken."""

    values: dict[str, Any]
    book: Book
    merged: list[str]
    params: dict[str, Any]


def take_snapshot(walk: Walk, rng: random.Random) -> str:
    merged = [name for name, entry in walk.book.entries.items() if entry.merge]
    params = oracle.values_of(walk.book, walk.states())
    params = {name: {key: value.copy() for key, value in held.items()} for name, held in params.items()}
    walk.snapshots = [Snapshot(clone(walk.model.state_dict()), copy.deepcopy(walk.book), merged, params)]
    return f"merged: {merged}"


def load_snapshot(walk: Walk, rng: random.Random) -> str | None:
    """Load an earlier state dict. If other adapters were merged then, this is right or an error."""
    if not walk.snapshots:
        return None
    (old,) = walk.snapshots
    book, was = walk.book, old.book
    if (
        old.values.keys() != walk.model.state_dict().keys()
        or was.entries.keys() != book.entries.keys()
        or was.wraps != book.wraps
    ):
        return None
    merged = [name for name, entry in book.entries.items() if entry.merge]
    if merged and merged == old.merged:
        return None  # which bits unmerge restores is then a matter of taste
    refusal = "never" if merged == old.merged else "maybe"
    if not walk.attempt(lambda: walk.model.load_state_dict(clone(old.values)), refusal):
        return f"refused: merged {merged}, then {old.merged}"
    dtype = book.dtype
    if merged != old.merged:  # the outputs are those of then; what can be unmerged now is the library's to say
        x = walk.input(rng)
        for name, entry in was.entries.items():
            entry.task, entry.is_enabled = book.entries[name].task, True
        same_task = all(len(entry.tasks) == 1 for entry in was.entries.values())
        wanted = oracle.output(was, walk.states(), x, old.params)
        if same_task:
            oracle.assert_close(
                walk.model(x), wanted, max(walk.tolerance(), 1e-4), "output after loading a merged state"
            )
        walk.is_over = True
        return f"loaded: merged {merged}, then {old.merged}"
    for name, entry in book.entries.items():
        entry.values = {key: value.to(entry.values[key].dtype) for key, value in was.entries[name].values.items()}
    book.tensors = {
        key: value.to(dtype) if value.is_floating_point() else value.clone() for key, value in was.tensors.items()
    }
    return f"merged: {merged}"


# ---- files


def fresh(walk: Walk, entry: Entry) -> nn.Module | None:
    """Make a new host with the weights from before the adapter, or none if other things are in them."""
    if walk.book.wraps.keys() - entry.folded or any(merge is not entry.merge for merge in walk.book.merges):
        return None
    if any(wraps != [entry.name] for wraps in walk.book.wraps.values()):
        return None
    model = walk.kind.make().to(walk.book.dtype)
    values = {name: value for key, value in walk.book.tensors.items() for name in walk.book.names_of(key)}
    for key, original in (entry.merge.originals if entry.merge else {}).items():
        values |= {name: original for place in walk.book.stored(key) for name in walk.book.names_of(place)}
    plain = {key.replace("parametrizations.", "").removesuffix(".original"): value for key, value in values.items()}
    model.load_state_dict(plain)
    return model


def compare_fresh(walk: Walk, model: nn.Module, name: str, error: float, rng: random.Random) -> None:
    """Compare the updates of an adapter that was read from a file with those of the one that was written."""
    entry, old, new = walk.book.entries[name], walk.states()[name], states_of(model)[name]
    book = Book(walk.kind, walk.kind.make())
    host = {
        key: value for key, value in model.state_dict().items() if not is_ours(key) and key not in walk.book.aliases
    }
    folded = {key for key in entry.folded if key in walk.kind.parameters}  # `load` folds nothing else
    twin = Entry(name, entry.host, entry.weights, entry.layouts, folded, {}, entry.tasks, entry.task)
    book.attach(twin)
    twin.has_map, twin.is_rounded = entry.has_map, entry.is_rounded
    twin.reads, twin.magnitudes = bool(new.adapter.hosts), entry.magnitudes
    twin.values = {key: value.detach().clone() for key, value in new.params().items()}
    book.tensors = {key: value.detach().clone() for key, value in host.items()}
    for key, away in entry.saved.items():
        trained = walk.book.tensors[key] if entry.is_trained else away
        oracle.assert_close(host[key], trained.double(), max(error, 1e-6), f"{key} from the file")
        twin.saved[key], book.flags[key] = away, True
    before, after = oracle.values_at(walk.book, old), oracle.values_at(book, new)
    for path in entry.weights:
        wanted = oracle.update_of(entry, path, old.adapter, before)
        found = oracle.update_of(twin, path, new.adapter, after)
        oracle.assert_close(found, wanted, error + entry.error, f"update of {path} from the file")
    kept = walk.model, walk.book
    try:
        walk.model, walk.book = model, book
        states_of(model)[name].set_task(entry.task)
        walk.compare(model(x := walk.input(rng)), x, "output with the file")
        train(walk, rng, update=False)
    finally:
        walk.model, walk.book = kept


def precision(walk: Walk, name: str) -> float:
    """Return what a file may lose: a frozen factor is drawn again in full precision."""
    low = any(value.dtype == torch.bfloat16 for value in walk.states()[name].params().values())
    return 5e-2 if low else 1e-6


def save_and_load(walk: Walk, rng: random.Random) -> str | None:
    """Save an adapter to a file and load it onto a fresh copy of the base."""
    if (name := pick(walk, rng)) is None or (model := fresh(walk, walk.book.entries[name])) is None:
        return None
    entry, path = walk.book.entries[name], walk.folder / "adapter.safetensors"
    # A starting value that a cast rounded cannot be stored: the library says so.
    if not walk.attempt(lambda: walk.states()[name].save(path), "maybe" if entry.error else "never", FormatError):
        return f"{name} refused"
    layouts = {path: " ".join(entry.layouts[key]) for path, key in entry.weights.items() if key in walk.kind.parameters}
    tnadapt_torch.load(model.get_submodule(entry.host), path, adapter_name=name, target_parameters=layouts or None)
    compare_fresh(walk, model, name, precision(walk, name), rng)
    return name


def has_full_rank(book: Book, entry: Entry, state: AdapterState) -> bool:
    """Return whether some update has no LoRA that is smaller than itself. A magnitude is exported beside the LoRA."""
    values, adapter = oracle.values_at(book, state), without_magnitude(state.adapter)
    dense = [oracle.update_of(entry, path, adapter, values).numpy() for path in entry.weights]
    return any(bool((np.linalg.matrix_rank(update) == min(update.shape[-2:])).any()) for update in dense)


def save_as_lora(walk: Walk, rng: random.Random) -> str | None:
    """Export an adapter as a LoRA of PEFT and load that onto a fresh copy of the base."""
    if (name := pick(walk, rng)) is None or (model := fresh(walk, walk.book.entries[name])) is None:
        return None
    entry, state = walk.book.entries[name], walk.states()[name]
    has_others = len(entry.tasks) > 1 or any(key in walk.kind.parameters for key in entry.weights.values())
    tied = any(walk.book.is_shared(key, entry.host) for key in entry.saved)
    is_thin = state.spec.name in THIN and all(site.block is None for site in state.adapter.sites)
    refusal = (
        "always" if has_others or tied or has_full_rank(walk.book, entry, state) else "never" if is_thin else "maybe"
    )
    folder = walk.folder / f"lora{rng.getrandbits(32)}"
    if not walk.attempt(lambda: state.save_as_lora(folder), refusal, (SiteError, PlanError, FormatError)):
        return f"{name} refused"
    tnadapt_torch.load_peft(model.get_submodule(entry.host), folder, adapter_name=name)
    compare_fresh(walk, model, name, max(precision(walk, name), 1e-5), rng)
    return name
