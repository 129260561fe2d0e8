"""The file of an adapter: the trained factors, one JSON text, and digests of everything. Loading runs no code."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as to_bytes

from tnadapt._errors import FormatError, SiteError
from tnadapt._files.drawn import is_changed, rounded
from tnadapt._files.fingerprint import DIGITS, check_fingerprints, fingerprint_of
from tnadapt._files.limits import HEADER, MADE, MADE_PER_STORED, MOST_MADE, STORED, UNNAMED, check_extra, keep, shorten
from tnadapt._files.plain import dump, parse, take
from tnadapt._files.target import write_atomically
from tnadapt._files.tensors import TensorFile, open_tensors
from tnadapt._files.text import VERSION, adapter_data, adapter_of, take_version
from tnadapt._hosts import Site
from tnadapt._language import START, Adapter, Slot, expect_adapter, expect_params, expect_path, host_entry
from tnadapt._signature import answers
from tnadapt._values import sample
from tnadapt._version import __version__

__all__ = ["Checkpoint", "digests", "file_size", "load", "params_to_store", "read_checkpoint", "save"]

Array = npt.NDArray[np.floating[Any]]
EXTRA = ":extra"  # ends the name of an extra tensor; a slot's name ends in an identifier
ALIGNMENT = 8  # bytes; also the size of the field with the length of a safetensors header
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


@answers(FormatError)
def save(
    adapter: Adapter,
    params: Mapping[str, npt.ArrayLike],
    path: str | os.PathLike[str],
    *,
    extra: Mapping[str, npt.ArrayLike] | None = None,
) -> None:
    """Write one .safetensors file with the trainable factors and everything needed to recreate the frozen ones.

    Frozen factors need not be in `params`. They are stored only if they are given and differ from the values of the
    seed, or if their initializer uses linear algebra (orthogonal). `extra` holds arrays of the host that were trained
    too. The file is written completely or not at all. Raises FormatError for params that do not belong to this adapter,
    and for a frozen `cyclic()` factor with other values than its pattern.
    """
    expect_adapter(adapter, "save", FormatError)
    expect_params(params, "save", FormatError)
    expect_path(path, "save", FormatError)
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
            drawn[name] = _digest(values)
    if unknown := params.keys() - adapter.slots.keys() - adapter.hosts.keys():
        name = sorted(map(str, unknown))[0]
        raise FormatError(f"params: expected only names of this adapter, got {name!r}.\nNothing was written.")
    check_extra(extra or {})
    tensors = stored | {name + EXTRA: _native(name, value) for name, value in (extra or {}).items()}
    keep("save", "stored numbers", sum(array.size for array in tensors.values()), STORED)
    content = to_bytes(tensors, _metadata(adapter, drawn, _seal(tensors), _fingerprints(adapter, params)))
    keep("save", "bytes of header", int.from_bytes(content[:ALIGNMENT], "little"), HEADER)
    write_atomically(Path(path), content)


def params_to_store(
    adapter: Adapter, params: Mapping[str, npt.ArrayLike], dtypes: Mapping[str, str]
) -> dict[str, npt.ArrayLike]:
    """Choose from a framework's params those that a file must hold.

    A frozen factor that has the values of its seed, rounded to its dtype, is left out, because loading draws it again.
    So is a starting value that follows from the seed (a name that ends in ":start").

    Args:
        adapter: the adapter to which the params belong.
        params: arrays by name; bfloat16 arrays as float32.
        dtypes: the dtype in which the framework keeps each array, such as "bfloat16".

    Raises:
        FormatError: a drawn starting value or a frozen `cyclic()` factor that was changed, since no file stores one.
    """
    kept: dict[str, npt.ArrayLike] = {}
    for name, value in params.items():
        slot = adapter.slots.get(name) or adapter.slots[name.removesuffix(START)]
        if name in adapter.slots and slot.is_stored:
            kept[name] = value
        elif is_changed(slot, np.asarray(value), rounded(sample(slot, adapter.seed), dtypes[name])):
            if name not in adapter.slots:
                raise FormatError(
                    f"params[{name!r}]: expected the starting value that follows from the seed, got another.\n"
                    "Nothing was written, since a file does not store starting values that are drawn."
                )
            kept[name] = value
    return kept


def file_size(adapter: Adapter, *, dtype: str = "float32") -> int:
    """Return the exact size in bytes of the file that `save` writes for params of this dtype.

    The frozen factors are those of the seed. Raises FormatError for a dtype that files do not store.
    """
    expect_adapter(adapter, "file_size", FormatError)
    if dtype not in DTYPES:
        raise FormatError(f"file_size: expected one of {', '.join(DTYPES)} as dtype, got {dtype!r}.")
    stored = sorted(name for name, slot in adapter.slots.items() if slot.is_stored)
    digest = _sha256("")  # all digests have the same length
    drawn = {name: digest for name, slot in adapter.slots.items() if not slot.is_stored}
    known = dict.fromkeys(_host_sites(adapter), "0" * DIGITS)
    header: dict[str, object] = {"__metadata__": _metadata(adapter, drawn, digest, known)}
    end = 0
    for name in stored:
        shape = adapter.slots[name].shape
        start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": f"F{8 * np.dtype(dtype).itemsize}", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return ALIGNMENT + len(text) + -len(text) % ALIGNMENT + end


def digests(adapter: Adapter, *, draw_limit: int = MOST_MADE) -> dict[str, str]:
    """Return the SHA-256 digest of each frozen factor that is drawn from the seed: name -> digest.

    A file stores these digests instead of the values. Raises FormatError if more than `draw_limit` numbers would have
    to be drawn.
    """
    expect_adapter(adapter, "digests", FormatError)
    slots = [slot for slot in adapter.slots.values() if not slot.is_stored]
    _check_draw("the adapter", slots, draw_limit)
    return {slot.name: _digest(sample(slot, adapter.seed)) for slot in slots}


def _check_draw(where: str | Path, slots: Iterable[Slot], limit: int) -> None:
    if (entries := sum(math.prod(slot.shape) for slot in slots)) > limit:
        raise FormatError(
            f"{where}: expected at most {limit:,} frozen numbers to draw, got {entries:,}.\n"
            f"If you trust it, pass draw_limit={entries}."
        )


def _metadata(adapter: Adapter, drawn: Mapping[str, str], seal: str, hosts: Mapping[str, str]) -> dict[str, str]:
    data = {"format": VERSION, "library": __version__} | adapter_data(adapter)
    text = dump(data | {"drawn": drawn, "stored": seal} | ({"hosts": hosts} if hosts else {}))
    return {"tnadapt": f"{_sha256(text)} {text}"}


def _host_sites(adapter: Adapter) -> dict[str, Site]:
    """Return the sites whose weights are a factor, or give one, by path."""
    return {site.path: site for site, _ in adapter.hosts.values()}


def _fingerprints(adapter: Adapter, params: Mapping[str, npt.ArrayLike]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path, site in _host_sites(adapter).items():
        entry = host_entry(site)
        if entry not in params:
            raise FormatError(
                f"params: expected the host's weight as {entry!r}, got none.\nTake it from init(adapter, weights): "
                f"save(adapter, init(adapter, weights) | params, path). Nothing was written."
            )
        found[path] = fingerprint_of(params[entry])
    return found


@answers(FormatError)
def load(path: str | os.PathLike[str], *, draw_limit: int | None = None) -> tuple[Adapter, dict[str, Array]]:
    """Read the adapter and all its params from a file. Arguments and errors are those of `read_checkpoint`."""
    checkpoint = read_checkpoint(path, draw_limit=draw_limit)
    return checkpoint.adapter, checkpoint.params


def read_checkpoint(path: str | os.PathLike[str], *, draw_limit: int | None = None) -> Checkpoint:
    """Read and check everything in a file: first its header, then its tensors.

    Args:
        path: the file.
        draw_limit: the most frozen numbers to draw. By default 2^26, or 16 for each stored number if that is more, but
            at most 2^28.

    Raises:
        FormatError: a file that is not a tnadapt file, was truncated or changed, has another format version or unknown
            keys, or is above one of the limits in docs/files.md.
        FileNotFoundError: there is no file.
    """
    expect_path(path, "load", FormatError)
    path = Path(path)
    with open_tensors(path, str(path)) as file:
        data = parse(_text_of(path, file.metadata))
        version = take_version(str(path), data)
        seals = take("file", {key: data.pop(key, None) for key in ("library", "drawn", "stored")}, SEALS)
        hosts = data.pop("hosts", {})
        factors = sum(not name.endswith(EXTRA) for name in file.entries)
        adapter = adapter_of(data, version, factors + len(seals["drawn"]))
        _check_entries(path, adapter, file, seals["drawn"], draw_limit)
        check_fingerprints(path, take("file", {"hosts": hosts}, {"hosts": dict})["hosts"], _host_sites(adapter))
        tensors = file.read()
    if _seal(tensors) != seals["stored"]:
        raise FormatError(
            f"{path}: expected stored numbers with the digest that was saved with them, got another digest."
        )
    extra = {name.removesuffix(EXTRA): value for name, value in tensors.items() if name.endswith(EXTRA)}
    stored = {name: value for name, value in tensors.items() if not name.endswith(EXTRA)}
    try:
        return Checkpoint(adapter, _params(path, adapter, stored, seals["drawn"]), extra, hosts)
    except SiteError as error:  # a fan that no float can hold
        raise FormatError(f"{path}: expected factors that can be drawn, got others.\n{shorten(error)}") from error


SEALS = {"library": str, "drawn": dict, "stored": str}


def _text_of(path: Path, metadata: Mapping[str, str]) -> str:
    sealed, _, text = metadata.get("tnadapt", "").partition(" ")
    if _sha256(text) != sealed:
        raise FormatError(f"{path}: expected a tnadapt file, got another file, or one whose text was changed.")
    return text


def _check_entries(path: Path, adapter: Adapter, file: TensorFile, drawn: Mapping[str, str], limit: int | None) -> None:
    """Raise FormatError unless the names, dtypes and shapes in a file are those of its adapter and of extra tensors.

    `limit` is that of numbers to draw. Nothing is read or drawn before.
    """
    if wrong := [name for name, entry in file.entries.items() if entry.named_dtype not in DTYPES]:
        dtype = file.entries[wrong[0]].named_dtype
        raise FormatError(f"{path}: expected tensors of {', '.join(DTYPES)}, got {shorten(wrong[0])} of {dtype}.")
    stored = {name: entry for name, entry in file.entries.items() if not name.endswith(EXTRA)}
    keep(path, "factors", _count_slots(adapter), UNNAMED * (1 + len(stored) + len(drawn)))
    wanted = {name for name, slot in adapter.slots.items() if slot.is_stored}
    missing_or_unknown = (stored.keys() | drawn.keys()) ^ adapter.slots.keys()
    if odd := sorted(missing_or_unknown | (drawn.keys() & (wanted | stored.keys()))):
        names = shorten(", ".join(odd[:5]))
        raise FormatError(f"{path}: expected exactly the factors of its adapter, got a file that differs in {names}.")
    most = min(max(MADE, MADE_PER_STORED * file.numbers), MOST_MADE) if limit is None else limit
    _check_draw(path, (adapter.slots[name] for name in drawn), most)
    for name, entry in stored.items():
        if entry.shape != (shape := adapter.slots[name].shape):
            raise FormatError(f"{path}: expected {name} of shape {shape}, got {entry.shape}.")


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
        if name in drawn and _digest(params[name]) != drawn[name]:
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


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(drawn: Array) -> str:
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
