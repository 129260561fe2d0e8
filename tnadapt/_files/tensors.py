"""The tensors of a safetensors file: its header is read and checked first, and tensors only when they are asked for."""

import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tnadapt._errors import FormatError
from tnadapt._files.limits import HEADER, NESTED, STORED, keep
from tnadapt._files.plain import parse
from tnadapt._language import MOST_AXES

__all__: list[str] = []

Array = npt.NDArray[Any]

LENGTH = 8  # bytes of the field with the length of the header
WIDTHS = {"F16": 2, "F32": 4, "F64": 8, "BF16": 2}
LONGEST_DTYPE = 16  # characters, such as F8_E4M3
METADATA = "__metadata__"
DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}  # numpy has no bfloat16: its bits
MOST_ENTRIES = 2**60  # of an array in numpy, also of one that has none because another axis is 0


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype in the words of the format, its shape, the range of its bytes, and its size."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    size: int

    @property
    def named_dtype(self) -> str:
        """The name of its dtype in numpy, such as "float32"; the word of the format for others."""
        kinds = {"F": "float", "I": "int", "U": "uint", "BF": "bfloat"}
        word = self.dtype.rstrip("0123456789")
        return f"{kinds[word]}{self.dtype[len(word) :]}" if word in kinds and word != self.dtype else self.dtype


@dataclass(frozen=True)
class TensorFile:
    """An open file: its metadata, and its entries in the order of their bytes, whose ranges fill the file exactly."""

    where: str
    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]
    file: BufferedReader
    begin: int

    @property
    def numbers(self) -> int:
        """The number of all its entries."""
        return sum(entry.size for entry in self.entries.values())

    def read(self) -> dict[str, Array]:
        """Read all tensors, as new arrays in native byte order; those of bfloat16 as the integers of their bits.

        Their dtypes must be in `DTYPES`. Raises FormatError if they are too many, or if the file was cut meanwhile.
        """
        keep(self.where, "stored numbers", self.numbers, STORED)
        self.file.seek(self.begin)
        found: dict[str, Array] = {}
        for name, entry in self.entries.items():
            array = np.empty(entry.size, DTYPES[entry.dtype])
            if self.file.readinto(array.view(np.uint8).data) != array.nbytes:
                raise _fault(self.where, "it ends before its tensors do")
            found[name] = array.astype(array.dtype.newbyteorder("="), copy=False).reshape(entry.shape)
        return found


@contextmanager
def open_tensors(path: Path, where: str) -> Iterator[TensorFile]:
    """Open a file and read its header; `where` begins the message of an error.

    Raises FormatError for a file that is not a whole safetensors file, or whose header is too long, and
    FileNotFoundError if there is none.
    """
    if not path.is_file():
        if path.exists() and not path.is_dir():
            raise FormatError(f"{where}: expected a file, got a device or a pipe.\nGive the path of a file.")
        if path.is_dir():
            todo = "Read a checkpoint of PEFT with read_peft, or with load_peft in PyTorch."
            if own := next(path.glob("tnadapt_*.safetensors"), None):
                todo = f"Load {own}."
            raise FileNotFoundError(f"{path}: expected a file, got a folder.\n{todo}")
        raise FileNotFoundError(f"{path}: expected a file, got none.\nCheck the path.")
    with path.open("rb") as file:
        whole = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(LENGTH), "little")
        if whole < LENGTH or length > whole - LENGTH:
            raise _fault(where, f"a header of {length:,} bytes does not fit in {whole:,}")
        keep(where, "bytes of header", length, HEADER)
        content = file.read(length)
        keep(where, "lists and objects in its header", content.count(b"[") + content.count(b"{"), NESTED)
        try:
            header = _header(content)
            entries = {name: _entry(name, entry) for name, entry in header.items() if name != METADATA}
        except (FormatError, UnicodeDecodeError) as error:
            raise _fault(where, str(error).rstrip(".")) from None
        begin = LENGTH + length
        entries = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
        _check_ranges(where, list(entries.values()), whole - begin)
        yield TensorFile(where, header.get(METADATA, {}), entries, file, begin)


def _header(content: bytes) -> dict[str, Any]:
    if not content.startswith(b"{"):
        raise FormatError("its header is not JSON")
    header = parse(content.decode())
    metadata = header.get(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError("its metadata are not strings by name")
    return header


def _entry(name: str, data: object) -> Entry:
    match data:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, stop], **others} if not others:
            numbers = [*shape, start, stop]
        case _:
            raise FormatError(f"the entry of {name[:100]!a} is not valid")
    if (
        len(dtype) > LONGEST_DTYPE
        or len(shape) > MOST_AXES
        or any(type(number) is not int or number < 0 for number in numbers)
    ):
        raise FormatError(f"the dtype, the shape or the place of {name[:100]!a} is not valid")
    size = math.prod(shape)
    if size == 0 and math.prod(number or 1 for number in shape) > MOST_ENTRIES:
        raise FormatError(f"the shape of {name[:100]!a} is not that of an array")
    if dtype in WIDTHS and size * WIDTHS[dtype] != stop - start:
        raise FormatError(f"the shape of {name[:100]!a} does not fit its bytes")
    return Entry(dtype, tuple(shape), start, stop, size)


def _check_ranges(where: str, entries: Collection[Entry], length: int) -> None:
    """Raise FormatError unless the ranges follow each other from 0 to the end of the file."""
    ends = [0, *(end for entry in entries for end in (entry.start, entry.stop)), length]
    if any(one != other for one, other in list(pairwise(ends))[::2]):
        raise _fault(where, "its tensors do not fill it exactly")


def _fault(where: str, why: str) -> FormatError:
    return FormatError(
        f"{where}: expected a whole safetensors file, got one that cannot be read: {why}.\nSave or download it again."
    )
