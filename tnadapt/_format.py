"""The file of an adapter: what was trained, one JSON text, and digests of everything. Loading runs no code."""

import hashlib
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from tnadapt._errors import FormatError
from tnadapt._init import draw
from tnadapt._json import VERSION, adapter_data, adapter_of, dump, parse, take
from tnadapt._spec import Adapter, Slot

__all__ = ["Checkpoint", "load", "read", "save"]

Array = npt.NDArray[np.floating[Any]]
EXTRA = "extra."  # tensors of the host that were trained along; no slot's name can begin with it and end the same way
DRAW_LIMIT = 2**28
DTYPES = ("float16", "float32", "float64")


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: the adapter, its params (trained as stored, frozen drawn again), tensors saved along."""

    adapter: Adapter
    params: dict[str, Array]
    extra: dict[str, Array]


def save(
    adapter: Adapter,
    params: Mapping[str, npt.ArrayLike],
    path: str | os.PathLike[str],
    *,
    extra: Mapping[str, npt.ArrayLike] | None = None,
) -> None:
    """Write one .safetensors file: the trainable factors, and all that is needed to make the rest again.

    Frozen factors may be in `params` and must then be those of the seed; they are stored only where their law rests on
    linear algebra (orthogonal). `extra` holds arrays of the host that were trained along. The file appears whole or
    not at all. Raises FormatError for params that are not this adapter's.
    """
    stored = {name: _array(name, params, slot) for name, slot in adapter.slots.items() if slot.is_stored}
    drawn = {}
    for name, slot in adapter.slots.items():
        if not slot.is_stored:
            drawn[name] = _digest([draw(slot, adapter.seed).astype("<f4")])
            if name in params and _digest([_array(name, params, slot).astype("<f4")]) != drawn[name]:
                raise FormatError(
                    f"{name}: a frozen factor must hold the values of its seed.\nHowever, it was changed."
                )
    tensors = stored | {EXTRA + name: np.ascontiguousarray(value) for name, value in (extra or {}).items()}
    data = {"format": VERSION, "library": _library()} | adapter_data(adapter)
    text = dump(data | {"drawn": drawn, "stored": _digest(tensors[name] for name in sorted(tensors))})
    metadata = {"tnadapt": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    write_atomically(Path(path), to_bytes(tensors, metadata))


def load(path: str | os.PathLike[str]) -> tuple[Adapter, dict[str, Array]]:
    """The adapter and all its params from a file. Raises as `read` does."""
    checkpoint = read(path)
    return checkpoint.adapter, checkpoint.params


def read(path: str | os.PathLike[str], *, draw_limit: int = DRAW_LIMIT) -> Checkpoint:
    """Everything in a file, checked.

    Raises FormatError for a file that is no adapter's, was cut or changed, is of another format version, has unknown
    keys, or asks for more than `draw_limit` frozen numbers to be drawn; FileNotFoundError where there is none.
    """
    text, tensors = _open(Path(path))
    data = parse(text)
    found = data.pop("format", None)
    if found != VERSION:
        raise FormatError(f"{path}: saved with format {found!r}.\nHowever, this release reads format {VERSION}.")
    seals = take("file", {key: data.pop(key, None) for key in ("library", "drawn", "stored")}, SEALS)
    adapter = adapter_of(data)
    if _digest(tensors[name] for name in sorted(tensors)) != seals["stored"]:
        raise FormatError(f"{path}: the stored numbers do not have the digest that was saved with them.")
    extra = {name.removeprefix(EXTRA): value for name, value in tensors.items() if name.startswith(EXTRA)}
    stored = {name: value for name, value in tensors.items() if not name.startswith(EXTRA)}
    return Checkpoint(adapter, _params(Path(path), adapter, stored, seals["drawn"], draw_limit), extra)


SEALS = {"library": str, "drawn": dict, "stored": str}


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a neighbour of the file, then rename: readers see the old file or the new one."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _open(path: Path) -> tuple[str, dict[str, Array]]:
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: not a whole safetensors file: {error}") from None
    text = metadata.get("tnadapt", "")
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get("sha256"):
        raise FormatError(f"{path}: not a tnadapt file, or its text was changed.")
    if wrong := [name for name, value in tensors.items() if value.dtype.name not in DTYPES]:
        raise FormatError(f"{path}: {wrong[0]} is of dtype {tensors[wrong[0]].dtype}; known: {', '.join(DTYPES)}.")
    return text, tensors


def _params(
    path: Path, adapter: Adapter, stored: dict[str, Array], drawn: Mapping[str, str], draw_limit: int
) -> dict[str, Array]:
    wanted = {name for name, slot in adapter.slots.items() if slot.is_stored}
    if stored.keys() != wanted or drawn.keys() != adapter.slots.keys() - wanted:
        odd = sorted((stored.keys() | drawn.keys()) ^ adapter.slots.keys())
        raise FormatError(f"{path}: the factors are not those of its adapter; at odds: {', '.join(odd[:5]) or 'none'}.")
    shapes = {name: adapter.slots[name].shape for name in drawn}
    if (entries := sum(int(np.prod(shape, dtype=object)) for shape in shapes.values())) > draw_limit:
        raise FormatError(f"{path}: asks to draw {entries:,} frozen numbers; the limit is {draw_limit:,}.")
    params: dict[str, Array] = {}
    for name, slot in adapter.slots.items():
        params[name] = stored[name] if name in stored else draw(slot, adapter.seed)
        if params[name].shape != slot.shape:
            raise FormatError(f"{path}: {name} must have shape {slot.shape}.\nHowever, it has {params[name].shape}.")
        if name in drawn and _digest([params[name].astype("<f4")]) != drawn[name]:
            raise FormatError(f"{path}: {name} was drawn again from seed {adapter.seed}, but has another digest.")
    return params


def _array(name: str, params: Mapping[str, npt.ArrayLike], slot: Slot) -> Array:
    if name not in params:
        raise FormatError(f"params: {name!r} is missing.\nNothing was written.")
    array: Array = np.ascontiguousarray(params[name]).reshape(np.shape(params[name]))
    if array.shape != slot.shape or array.dtype.name not in DTYPES:
        raise FormatError(
            f"params[{name!r}]: must be a float array of shape {slot.shape}.\n"
            f"However, it is {array.dtype} of shape {array.shape}.\nNothing was written."
        )
    return array


def _digest(arrays: Iterable[Array]) -> str:
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def _library() -> str:
    try:
        return version("tnadapt")
    except PackageNotFoundError:
        return "unknown"
