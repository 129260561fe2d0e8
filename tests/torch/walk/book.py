"""The book of the walk: what the oracle knows of one model, and how each event changes it.

It holds a copy of every tensor of the host and of every factor, and says which adapters are on it, enabled, merged, and
for which task. The factors are read from the code under test after training; nothing else is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tests.torch.walk.kinds import Kind

MAP_ERROR = {torch.float64: 0.0, torch.float32: 1e-6, torch.bfloat16: 5e-2}


@dataclass
class Merge:
    """A merge: the adapter's name and the weights from before it. The adapter may have been detached since."""

    name: str
    originals: dict[str, Tensor]


@dataclass
class Entry:
    """What the book knows of one adapter."""

    name: str
    host: str  # the path of the module that it was attached to
    weights: dict[str, str]  # path of a weight in the adapter -> its name in the whole model
    layouts: dict[str, tuple[str, ...]]
    folded: set[str]
    saved: dict[str, Tensor]  # the tensors trained in full, by name: the values that the model does not hold at present
    tasks: tuple[str, ...] = ("",)
    task: str = ""
    is_trained: bool = True  # whether the model holds the trained values of `saved`
    is_enabled: bool = True
    merge: Merge | None = None
    frozen: set[str] = field(default_factory=set)  # the factors that the user froze
    values: dict[str, Tensor] = field(default_factory=dict)  # of the factors, as training or a cast left them
    reads: bool = False  # whether the host's weights are factors, or a magnitude reads them
    magnitudes: set[str] = field(default_factory=set)  # the factors that no cast takes below float32
    has_map: bool = False  # a map of a factor, such as a rotation, is computed in the dtype of the stored factor
    is_rounded: bool = False  # a cast rounded starting values, which the oracle draws again

    @property
    def error(self) -> float:
        """The relative error of the update against that of the reference, which computes in float64."""
        dtypes = {value.dtype for value in self.values.values()}
        mapped = max((MAP_ERROR[dtype] for dtype in dtypes), default=1e-6) if self.has_map else 0.0
        return max(mapped, 5e-2 if self.is_rounded else 0.0)

    @property
    def is_active(self) -> bool:
        return self.is_enabled and self.merge is None


class Book:
    """Everything that the walk expects of one model, apart from its outputs (`oracle.py`)."""

    def __init__(self, kind: Kind, model: nn.Module) -> None:
        self.kind = kind
        self.aliases = dict(kind.aliases)
        held = {key: value for key, value in model.state_dict(keep_vars=True).items() if key not in kind.aliases}
        self.tensors = {key: value.detach().clone() for key, value in held.items()}
        self.flags = {key: value.requires_grad for key, value in held.items() if isinstance(value, nn.Parameter)}
        self.before: dict[str, bool] = {}  # flags from before the first adapter over the parameter
        self.unfrozen: set[str] = set()  # what the user unfroze since
        self.refrozen: set[str] = set()  # what the user froze of modules trained in full
        self.loose: set[str] = set()  # parameters whose flags may be either
        self.wraps: dict[str, list[str]] = {}  # parametrizations of a weight in order: "scaled", "normed", an adapter
        self.hooks: dict[str, list[tuple[str, float]]] = {}  # the user's own hooks by module: ("before" | "after", x)
        self.entries: dict[str, Entry] = {}
        self.merges: list[Merge] = []

    @property
    def dtype(self) -> torch.dtype:
        return next(value.dtype for value in self.tensors.values() if value.is_floating_point())

    # ---- names

    def stored(self, key: str) -> list[str]:
        """Return the names of the tensors from which a weight is computed: its own, unless it is parametrized."""
        owner, _, name = key.rpartition(".")
        if not (wraps := self.wraps.get(key)):
            return [self.aliases.get(key, key)]
        leaves = ("original0", "original1") if wraps[0] == "normed" else ("original",)
        names = [f"{owner}.parametrizations.{name}.{leaf}" for leaf in leaves]
        return [self.aliases.get(name, name) for name in names]

    def names_of(self, key: str) -> list[str]:
        """Return every name of a stored tensor in the state dict."""
        return [key, *(alias for alias, first in self.aliases.items() if first == key)]

    def is_under(self, key: str, host: str) -> bool:
        return any(not host or name.startswith(f"{host}.") for name in self.names_of(key))

    def is_shared(self, key: str, host: str = "") -> bool:
        """Return whether a host holds a weight under several names. No module knows of those outside of it."""
        start = f"{host}." if host else ""
        return any(sum(name.startswith(start) for name in self.names_of(place)) > 1 for place in self.stored(key))

    def adapted(self) -> set[str]:
        return {key for entry in self.entries.values() for key in entry.weights.values()}

    def original(self, entry: Entry, key: str) -> Tensor:
        """Return a weight from before the merge of an adapter, in its present dtype."""
        (place,) = self.stored(key)
        return entry.merge.originals[key].to(self.tensors[place].dtype)

    def is_read(self, entry: Entry) -> bool:
        """Return whether another adapter that is not merged reads a weight of this one."""
        others = [one for one in self.entries.values() if one is not entry and one.reads and one.merge is None]
        return any({*one.weights.values()} & {*entry.weights.values()} for one in others)

    def merged(self) -> set[str]:
        """Return the weights that hold the update of an adapter that is still attached."""
        return {key for entry in self.entries.values() if entry.merge for key in entry.merge.originals}

    def saved(self) -> set[str]:
        return {key for entry in self.entries.values() for key in entry.saved}

    def module_keys(self, path: str) -> list[str]:
        """Return the names of the tensors of a module, each by its first name."""
        names = {alias: first for alias, first in self.aliases.items() if alias.startswith(f"{path}.")}
        return list(dict.fromkeys([*(key for key in self.tensors if key.startswith(f"{path}.")), *names.values()]))

    # ---- adapters

    def attach(self, entry: Entry) -> None:
        """Enter an adapter: what it adapts, and which parameters it freezes."""
        self.entries[entry.name] = entry
        for key in entry.folded:
            self.wrap(key, entry.name)
        trained = self.saved() - entry.saved.keys()
        for key in [key for key in self.flags if self.is_under(key, entry.host)]:
            self.before.setdefault(key, self.flags[key])
            if key in entry.saved:
                self.flags[key] = True
            elif key not in trained and key not in self.unfrozen:
                self.flags[key] = False

    def detach(self, name: str) -> None:
        """Remove an adapter; a merged update stays, and so do modules trained in full if it is merged."""
        entry = self.entries[name]
        if entry.merge is None and entry.is_trained:
            self.swap(entry)
        for key in entry.folded:
            self.unwrap(key, entry.name)
        del self.entries[name]
        for key in [key for key in self.before if self.is_under(key, entry.host)]:
            if any(self.is_under(key, other.host) for other in self.entries.values()):
                if key in entry.saved and key not in self.unfrozen:
                    self.flags[key] = False
            else:
                before = self.before.pop(key)
                self.flags[key] = before or key in self.unfrozen
                self.unfrozen.discard(key)
                if key in self.refrozen:  # as before the adapter, or as the user left it: both can be meant
                    self.loose.add(key)

    def swap(self, entry: Entry) -> None:
        """Exchange the trained and the original values of the modules trained in full."""
        for key, away in entry.saved.items():
            entry.saved[key] = self.tensors[key]
            self.tensors[key] = away.to(self.tensors[key].dtype)
        entry.is_trained = not entry.is_trained

    def merge(self, name: str, updates: Mapping[str, Tensor]) -> None:
        """Add the dense update of every weight, in float32 or better and rounded once."""
        originals = {}
        for key, update in updates.items():
            (place,) = self.stored(key)
            old = originals[key] = self.tensors[place]
            self.tensors[place] = (old.to(torch.promote_types(old.dtype, torch.float32)) + update).to(old.dtype)
        self.entries[name].merge = Merge(name, originals)
        self.merges.append(self.entries[name].merge)

    def unmerge(self, name: str) -> None:
        """Put back the weights from before the merge, in their present dtype."""
        merge = self.entries[name].merge
        for key, original in merge.originals.items():
            (place,) = self.stored(key)
            self.tensors[place] = original.to(self.tensors[place].dtype)
        self.merges.remove(merge)
        self.entries[name].merge = None

    def is_buried(self, name: str) -> bool:
        """Return whether a later merge changed a weight of this one."""
        merge = self.entries[name].merge
        later = self.merges[self.merges.index(merge) + 1 :]
        return any(merge.originals.keys() & other.originals.keys() for other in later)

    # ---- the user

    def cast(self, dtype: torch.dtype) -> None:
        tables = [(self.tensors, set()), *((entry.values, entry.magnitudes) for entry in self.entries.values())]
        for table, wide in tables:
            for key, value in table.items():
                is_kept = not value.is_floating_point() or (key in wide and dtype.itemsize < torch.float32.itemsize)
                table[key] = value if is_kept else value.to(dtype)

    def unfreeze(self, key: str) -> None:
        """Note that the user asked for a gradient. Only a change is seen: asking where one is wanted says nothing."""
        if not self.flags[key]:
            self.flags[key] = True
            if key in self.refrozen:
                self.refrozen.discard(key)
            elif key in self.before:
                self.unfrozen.add(key)

    def freeze(self) -> None:
        """Note that the user froze the whole model, its adapters included. What was frozen anyhow says nothing."""
        self.refrozen |= {key for key in self.saved() if self.flags[key] and key in self.before} - self.unfrozen
        self.flags = dict.fromkeys(self.flags, False)
        self.unfrozen.clear()

    def norm(self, key: str, parts: list[Tensor]) -> None:
        """Note that the user gave a weight torch's weight_norm: two new tensors take its place."""
        (old,) = self.stored(key)
        self.wraps[key] = ["normed"]
        del self.tensors[old]
        self.before.pop(old, None)
        self.unfrozen.discard(old)
        self.tensors |= dict(zip(self.stored(key), parts, strict=True))
        self.flags |= dict.fromkeys(self.stored(key), self.flags.pop(old))
        self.loose |= set(self.stored(key))

    def wrap(self, key: str, what: str) -> None:
        """Parametrize a weight, by the user or to fold an update in: its tensor gets another name."""
        self._rename(key, [*self.wraps.get(key, []), what])

    def unwrap(self, key: str, what: str) -> None:
        self._rename(key, [one for one in self.wraps[key] if one != what])

    def _rename(self, key: str, wraps: list[str]) -> None:
        owner, _, name = key.rpartition(".")
        inner = f"{owner}.parametrizations.{name}.original"
        old = inner if key in self.wraps else key
        self.wraps = {at: one for at, one in {**self.wraps, key: wraps}.items() if one}
        new = inner if key in self.wraps else key
        if "normed" not in wraps:
            for table in (self.tensors, self.flags, self.before, self.aliases):
                if old in table:
                    table[new] = table.pop(old)
            self.unfrozen = {new if one == old else one for one in self.unfrozen}
            self.refrozen = {new if one == old else one for one in self.refrozen}
