"""The file of an adapter: the trained factors, one JSON text, and digests of everything. Loading runs no code."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as to_bytes

from tnadapt._errors import FormatError
from tnadapt._files.content import (
    DTYPES,
    Array,
    Checkpoint,
    check_shapes,
    checkpoint_of,
    content_of,
    data_of,
    digest_of,
    host_sites,
    promise_of,
)
from tnadapt._files.drawn import is_changed, rounded
from tnadapt._files.fingerprint import DIGITS
from tnadapt._files.limits import HEADER, MADE, MADE_PER_STORED, MOST_MADE, STORED, keep
from tnadapt._files.plain import dump, parse, take
from tnadapt._files.target import write_atomically
from tnadapt._files.tensors import TensorFile, open_tensors
from tnadapt._files.text import VERSION, take_version
from tnadapt._language import START, Adapter, Slot, expect_adapter, expect_params, expect_path
from tnadapt._signature import answers
from tnadapt._values import sample
from tnadapt._version import __version__

__all__ = ["digests", "file_size", "load", "params_to_store", "read_checkpoint", "save"]

ALIGNMENT = 8  # bytes; also the size of the field with the length of a safetensors header
LINKS = "links"  # the key of the adapters of a chain


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
    tensors, data = content_of(adapter, params, extra or {})
    write(Path(path), tensors, data)


def write(path: Path, tensors: Mapping[str, Array], data: Mapping[str, Any]) -> None:
    """Write tensors and the plain data of what they belong to. Raises FormatError for too many of either."""
    keep("save", "stored numbers", sum(array.size for array in tensors.values()), STORED)
    content = to_bytes(dict(tensors), _metadata(data))
    keep("save", "bytes of header", int.from_bytes(content[:ALIGNMENT], "little"), HEADER)
    write_atomically(path, content)


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
    known = dict.fromkeys(host_sites(adapter), "0" * DIGITS)
    header: dict[str, object] = {"__metadata__": _metadata(data_of(adapter, drawn, digest, known))}
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
    check_draw("the adapter", slots, draw_limit)
    return {slot.name: digest_of(sample(slot, adapter.seed)) for slot in slots}


def check_draw(where: str | Path, slots: Iterable[Slot], limit: int) -> None:
    """Raise FormatError if these factors have more numbers than may be drawn."""
    if (entries := sum(math.prod(slot.shape) for slot in slots)) > limit:
        raise FormatError(
            f"{where}: expected at most {limit:,} frozen numbers to draw, got {entries:,}.\n"
            f"If you trust it, pass draw_limit={entries}."
        )


def _metadata(data: Mapping[str, Any]) -> dict[str, str]:
    text = dump({"format": VERSION, "library": __version__, **data})
    return {"tnadapt": f"{_sha256(text)} {text}"}


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
            keys, or is above one of the limits in docs/reference/files.md.
        FileNotFoundError: there is no file.
    """
    expect_path(path, "load", FormatError)
    path = Path(path)
    with open_tensors(path, str(path)) as file:
        data = parse(text_of(path, file.metadata))
        version = take_version(str(path), data)
        take("file", {"library": data.pop("library", None)}, {"library": str})
        if LINKS in data:
            raise FormatError(
                f"{path}: expected the file of one adapter, got the file of a chain.\n"
                "Read it with tnadapt.policies.load_chain(path), or load it onto a model of torch with "
                "tnadapt_torch.policies.load_chain(model, path)."
            )
        promise = promise_of(path, data, version, file.entries)
        check_draw(path, promise.drawn_slots, most_drawn(file, draw_limit))
        check_shapes(path, promise, file.entries)
        tensors = file.read()
    return checkpoint_of(path, promise, tensors)


def most_drawn(file: TensorFile, limit: int | None) -> int:
    """Return how many numbers may be drawn for what a file stores, unless a limit is given."""
    return min(max(MADE, MADE_PER_STORED * file.numbers), MOST_MADE) if limit is None else limit


def text_of(path: Path, metadata: Mapping[str, str]) -> str:
    """Return the text of a file. Raises FormatError if it is none of tnadapt, or was changed."""
    sealed, _, text = metadata.get("tnadapt", "").partition(" ")
    if _sha256(text) != sealed:
        raise FormatError(f"{path}: expected a tnadapt file, got another file, or one whose text was changed.")
    return text


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
