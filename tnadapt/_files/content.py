"""What a file holds of one adapter: its stored tensors and its text, both sealed by digests, and how they are read."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tnadapt._errors import FormatError, SiteError
from tnadapt._files.drawn import is_changed
from tnadapt._files.fingerprint import check_fingerprints, fingerprint_of
from tnadapt._files.limits import UNNAMED, check_extra, keep, shorten
from tnadapt._files.plain import take
from tnadapt._files.tensors import Entry
from tnadapt._files.text import adapter_data, adapter_of
from tnadapt._hosts import Site
from tnadapt._language import Adapter, Slot, host_entry
from tnadapt._values import sample

__all__ = ["Checkpoint"]

Array = npt.NDArray[np.floating[Any]]

EXTRA = ":extra"  # ends the name of an extra tensor; a slot's name ends in an identifier
DTYPES = ("float16", "float32", "float64")
NAMES = {np.dtype(name).char: name for name in DTYPES}  # the name of a dtype takes numpy microseconds
CHUNK = 2**20  # numbers of which a digest is updated at once


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file: the adapter, its params (frozen ones drawn again), and extra tensors.

    `hosts` has the fingerprints of the host's weights by path, if they are factors of the adapter.
    """

    adapter: Adapter
    params: dict[str, Array]
    extra: dict[str, Array]
    hosts: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_double(self) -> bool:
        """Whether a stored factor is float64. If none is, a binding loads all of them as float32."""
        slots = self.adapter.slots
        return any(value.dtype == np.float64 for name, value in self.params.items() if slots[name].is_stored)


@dataclass(frozen=True)
class Promise:
    """What the text of a file says of one adapter, before any tensor is read.

    `drawn` has the digests of the factors that are drawn again, and `stored` is that of all stored tensors.
    """

    adapter: Adapter
    drawn: Mapping[str, str]
    stored: str
    hosts: Mapping[str, str]

    @property
    def drawn_slots(self) -> list[Slot]:
        """The factors that are drawn again."""
        return [self.adapter.slots[name] for name in self.drawn]


def content_of(
    adapter: Adapter, params: Mapping[str, npt.ArrayLike], extra: Mapping[str, npt.ArrayLike]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the tensors and the text, as plain data, that a file holds of an adapter.

    Raises FormatError for params that do not belong to the adapter.
    """
    stored: dict[str, Array] = {}
    drawn: dict[str, str] = {}
    for name, slot in adapter.slots.items():
        if slot.is_stored:
            stored[name] = _array(name, params, slot)
            continue
        values = sample(slot, adapter.seed)
        if name in params and is_changed(slot, found := _array(name, params, slot), values):
            stored[name] = found
        else:
            drawn[name] = digest_of(values)
    if unknown := params.keys() - adapter.slots.keys() - adapter.hosts.keys():
        name = sorted(map(str, unknown))[0]
        raise FormatError(f"params: expected only names of this adapter, got {name!r}.\nNothing was written.")
    check_extra(extra)
    tensors = stored | {name + EXTRA: _native(name, value) for name, value in extra.items()}
    return tensors, data_of(adapter, drawn, _seal(tensors), _fingerprints(adapter, params))


def data_of(adapter: Adapter, drawn: Mapping[str, str], seal: str, hosts: Mapping[str, str]) -> dict[str, Any]:
    """Return the text on an adapter as plain data: the adapter, and the digests of its arrays."""
    return adapter_data(adapter) | {"drawn": drawn, "stored": seal} | ({"hosts": hosts} if hosts else {})


def promise_of(path: Path, data: dict[str, Any], version: int, entries: Mapping[str, Entry]) -> Promise:
    """Read the text on an adapter. Raises FormatError unless it fits the entries of the file's header."""
    seals = take("file", {key: data.pop(key, None) for key in SEALS}, SEALS)
    hosts = take("file", {"hosts": data.pop("hosts", {})}, {"hosts": dict})["hosts"]
    factors = sum(not name.endswith(EXTRA) for name in entries)
    adapter = adapter_of(data, version, factors + len(seals["drawn"]))
    _check_entries(path, adapter, entries, seals["drawn"])
    check_fingerprints(path, hosts, host_sites(adapter))
    return Promise(adapter, seals["drawn"], seals["stored"], hosts)


SEALS = {"drawn": dict, "stored": str}


def check_shapes(path: Path, promise: Promise, entries: Mapping[str, Entry]) -> None:
    """Raise FormatError unless the stored factors have the shapes that the adapter gives them."""
    for name, entry in entries.items():
        slot = promise.adapter.slots.get(name)
        if slot is not None and entry.shape != slot.shape:
            raise FormatError(f"{path}: expected {name} of shape {slot.shape}, got {entry.shape}.")


def checkpoint_of(path: Path, promise: Promise, tensors: Mapping[str, Array]) -> Checkpoint:
    """Return an adapter with its params. Raises FormatError unless they have the digests that were promised."""
    if _seal(tensors) != promise.stored:
        raise FormatError(
            f"{path}: expected stored numbers with the digest that was saved with them, got another digest."
        )
    extra = {name.removesuffix(EXTRA): value for name, value in tensors.items() if name.endswith(EXTRA)}
    stored = {name: value for name, value in tensors.items() if not name.endswith(EXTRA)}
    try:
        params = _params(path, promise.adapter, stored, promise.drawn)
    except SiteError as error:  # a fan that no float can hold
        raise FormatError(f"{path}: expected factors that can be drawn, got others.\n{shorten(error)}") from error
    return Checkpoint(promise.adapter, params, extra, promise.hosts)


def host_sites(adapter: Adapter) -> dict[str, Site]:
    """Return the sites whose weights are a factor, or give one, by path."""
    return {site.path: site for site, _ in adapter.hosts.values()}


def _fingerprints(adapter: Adapter, params: Mapping[str, npt.ArrayLike]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path, site in host_sites(adapter).items():
        entry = host_entry(site)
        if entry not in params:
            raise FormatError(
                f"params: expected the host's weight as {entry!r}, got none.\nTake it from init(adapter, weights): "
                f"save(adapter, init(adapter, weights) | params, path). Nothing was written."
            )
        found[path] = fingerprint_of(params[entry])
    return found


def _check_entries(path: Path, adapter: Adapter, entries: Mapping[str, Entry], drawn: Mapping[str, str]) -> None:
    """Raise FormatError unless the names and dtypes in a file are those of its adapter and of extra tensors.

    Nothing is read or drawn before.
    """
    if wrong := [name for name, entry in entries.items() if entry.named_dtype not in DTYPES]:
        dtype = entries[wrong[0]].named_dtype
        raise FormatError(f"{path}: expected tensors of {', '.join(DTYPES)}, got {shorten(wrong[0])} of {dtype}.")
    stored = {name: entry for name, entry in entries.items() if not name.endswith(EXTRA)}
    keep(path, "factors", _count_slots(adapter), UNNAMED * (1 + len(stored) + len(drawn)))
    wanted = {name for name, slot in adapter.slots.items() if slot.is_stored}
    missing_or_unknown = (stored.keys() | drawn.keys()) ^ adapter.slots.keys()
    if odd := sorted(missing_or_unknown | (drawn.keys() & (wanted | stored.keys()))):
        names = shorten(", ".join(odd[:5]))
        raise FormatError(f"{path}: expected exactly the factors of its adapter, got a file that differs in {names}.")


def _count_slots(adapter: Adapter) -> int:
    """Return the number of entries of an adapter's params without making them."""
    spec = adapter.spec
    shared = sum(map(spec.is_global, spec.arrays))
    used = {node.factor for node in spec.nodes.values() if node.at_start}
    kept = sum(spec.arrays[name].init.is_read for name in used)
    return shared + len(adapter.groups) * (len(spec.arrays) - shared + kept)


def _params(path: Path, adapter: Adapter, stored: dict[str, Array], drawn: Mapping[str, str]) -> dict[str, Array]:
    params: dict[str, Array] = {}
    for name, slot in adapter.slots.items():
        params[name] = stored[name] if name in stored else sample(slot, adapter.seed)
        if name in stored and slot.is_fixed:
            is_changed(slot, stored[name], sample(slot, adapter.seed))
        if name in drawn and digest_of(params[name]) != drawn[name]:
            raise FormatError(
                f"{path}: expected {name}, drawn again from seed {adapter.seed}, to have its saved digest, got another."
            )
    return params


def _array(name: str, params: Mapping[str, npt.ArrayLike], slot: Slot) -> Array:
    if name not in params:
        raise FormatError(f"params: expected an array {name!r}, got none.\nNothing was written.")
    array = _native(name, params[name])
    if array.shape != slot.shape:
        raise FormatError(f"params[{name!r}]: expected shape {slot.shape}, got {array.shape}.\nNothing was written.")
    return array


def _native(name: str, value: npt.ArrayLike) -> Array:
    """Return the value as a contiguous array in native byte order. Raises FormatError unless it consists of floats."""
    array: Array = np.asarray(value)
    if array.dtype.name not in DTYPES:
        raise FormatError(
            f"{name}: expected an array of {', '.join(DTYPES)}, got one of {array.dtype}.\nNothing was written."
        )
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def digest_of(drawn: Array) -> str:
    """Return the SHA-256 digest of a drawn factor as float32. Copies of parts of it take little memory."""
    whole, flat = hashlib.sha256(), drawn.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        whole.update(flat[start : start + CHUNK].astype("<f4").data)
    return whole.hexdigest()


def _seal(tensors: Mapping[str, Array]) -> str:
    """Return the SHA-256 digest of all stored tensors: their names, dtypes, shapes and values."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        whole.update(f"{name} {NAMES[array.dtype.char]} {array.shape}\n".encode())
        whole.update(array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).data)
    return whole.hexdigest()
