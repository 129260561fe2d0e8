"""Forged files: built entry by entry, with right digests, as somebody would who knows the format."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def factor(modes: str, trainable: bool = True, law: str = "constant", amount: float = 0, fan: str = "") -> dict:
    return {"modes": modes, "trainable": trainable, "init": {"law": law, "amount": amount, "fan": fan}}


def spec(**changes: Any) -> dict:
    """A LoRA in format 1, with changes."""
    plain = {"factors": {"A": factor("out r"), "B": factor("r in", amount=1)}, "name": "x", "weight": "out in"}
    plain |= {"over": "", "scale": {"rule": "raw", "alpha": 1, "bond": ""}, "centered": False}
    return plain | {"identity_at_start": False, "caps": {}} | changes


def site(shape: tuple[int, ...] = (6, 4), path: str = "q", **more: Any) -> dict:
    return {"path": ["layers.", f".{path}"], "shape": list(shape), "coordinates": {}} | more


def blocks(boxes: list[tuple[tuple[int, ...], tuple[int, ...]]], side: int) -> dict:
    """The sites of one weight: boxes of a shape and a start."""
    whole = {"weight": ["w"], "shape": [side, side]}
    patterns = [
        {"path": [f"w[{n}]"], "shape": shape, "coordinates": {"k": n}, "block": whole | {"start": start}}
        for n, (shape, start) in enumerate(boxes)
    ]
    return {"patterns": patterns, "sites": [[n, 0] for n in range(len(boxes))]}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def seal(arrays: dict[str, np.ndarray]) -> str:
    """The digest of all stored tensors, by code that is independent of the library."""
    whole = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        whole.update(f"{name} {array.dtype.name} {array.shape}\n".encode() + array.tobytes())
    return whole.hexdigest()


def adapter(**changes: Any) -> dict:
    """The text of an adapter with one site, with changes."""
    plain = {"spec": spec(), "patterns": [site()], "sites": [[0, 0]], "rank": 2, "sizes": {}, "seed": 0}
    return {"format": 1} | plain | changes


def write_text(path: Path, text: str, arrays: dict[str, np.ndarray]) -> Path:
    """Write a file with this text in its metadata, in the layout of safetensors."""
    header: dict[str, Any] = {"__metadata__": {"tnadapt": f"{digest(text)} {text}"}}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        kind = f"F{8 * array.itemsize}"
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, end]}
    return write_header(path, json.dumps(header).encode(), b"".join(array.tobytes() for array in arrays.values()))


def write_header(path: Path, header: bytes, body: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)
    return path


def write(path: Path, arrays: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """Write the file of an adapter, which is valid if the changes are."""
    arrays = {"A": np.zeros((6, 2), "f4"), "B": np.ones((2, 4), "f4")} if arrays is None else arrays
    data = adapter(**changes) | {"library": "0", "drawn": changes.get("drawn", {}), "stored": seal(arrays)}
    return write_text(path, json.dumps(data), arrays)
