"""Forged files: built entry by entry, with right digests, as somebody would who knows the format."""

import copy
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 8  # of a processor that is busy with other things too; 3 otherwise
CHILD = """
import json, resource, sys, time
import numpy as np
import tnadapt
from safetensors.numpy import load_file
from tnadapt.binding import read_checkpoint
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        checkpoint = read_checkpoint(path)
        used = time.process_time() - start
        held = checkpoint.params | {f"{name}:extra": value for name, value in checkpoint.extra.items()}
        right = all(np.array_equal(held[name], value) for name, value in load_file(path).items())
        found = "read" if right else "read with other numbers"
    except tnadapt.FormatError as error:
        used = time.process_time() - start
        found = "refused" if len(str(error).encode()) < 10_000 else "refused at length"
    except BaseException as error:
        used, found = 0, repr(error)[:300]
    print(json.dumps([found, used]), flush=True)
"""


def in_a_child(paths: Iterable[Path]) -> list[list]:
    """Read files in a process with 4 GiB of memory: whether each is read or refused, and the time it took."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    return [json.loads(line) for line in done.stdout.splitlines()]


def factor(modes: str, trainable: bool = True, kind: str = "constant", amount: float = 0, fan: str = "") -> dict:
    return {"modes": modes, "trainable": trainable, "init": {"kind": kind, "amount": amount, "fan": fan}}


def spec(**changes: Any) -> dict:
    """A LoRA, with changes."""
    plain = {"factors": {"A": factor("out r"), "B": factor("r in", amount=1)}, "name": "x", "weight": "out in"}
    plain |= {"over": "", "scale": {"rule": "raw", "alpha": 1, "bond": ""}}
    return plain | {"start": "free", "sizes": {}} | changes


LAWS = {  # kind of an initializer -> its word in format 1, where that is another
    "controlled_z": "sign",
    "hosvd_core": "projection",
    "svd": "singular",
    "t_svd": "tubal",
    "tensor_cur": "cur",
    "tt_svd": "train",
}


def older(data: Any) -> Any:
    """Return the text of a spec or an adapter in format 1, which must have words for all that it says."""
    spec = copy.deepcopy(data["spec"])
    rules, start = spec.pop("sizes"), spec.pop("start")
    kept = {key: value for key, value in data.items() if key not in ("format", "spec")}
    spec |= {"centered": start == "centered", "identity_at_start": start != "free"}
    given = " ".join(mode for mode, rule in rules.items() if rule == "required")
    others = {mode: rule for mode, rule in rules.items() if rule != "required"}
    ties = {bond: rule["like"] for bond, rule in others.items() if "like" in rule}
    spec |= {"caps": {bond: rule["at_most"] for bond, rule in others.items() if "at_most" in rule}}
    spec |= ({"given": given} if given else {}) | ({"ties": ties} if ties else {})
    for init in (factor["init"] for factor in spec["factors"].values()):
        init["law"] = LAWS.get(init["kind"], init["kind"])
        del init["kind"]
        assert not init.get("share")  # format 1 has no word for it
    return {"format": 1, "spec": spec, **kept}


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
    """The text of an adapter with one site in format 2, with changes."""
    plain = {"spec": spec(), "patterns": [site()], "sites": [[0, 0]], "rank": 2, "sizes": {}, "seed": 0}
    return {"format": 2} | plain | changes


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


def write(path: Path, arrays: dict[str, np.ndarray] | None = None, *, is_old: bool = False, **changes: Any) -> Path:
    """Write the file of an adapter in format 2, or in format 1; it is valid if the changes are."""
    arrays = {"A": np.zeros((6, 2), "f4"), "B": np.ones((2, 4), "f4")} if arrays is None else arrays
    data = adapter(**changes) | {"library": "0", "drawn": changes.get("drawn", {}), "stored": seal(arrays)}
    return write_text(path, json.dumps(older(data) if is_old else data), arrays)


NUMBERS = [0, -1, 1, 2, 3, 7, 1000, 65_536, 2**25, 2**27, 2**31 - 1, 2**31, 2**40, 2**63, 2**64, 10**400, 0.5, 1e308]
NUMBERS += [float("nan"), float("inf"), 1_068_762_240, True, None, "", "1", [], {}]
MANY = [2, 10, 1000, 100_000]


def any_text(draw: random.Random) -> str:
    words = [
        "",
        "x" * 600,
        "xy" * 10**5,
        "\ud800",
        "a\0b",
        "a\nb",
        "\u00e9",
        "...",
        "__metadata__",
        "(" * 100,
        "in",
        "r",
    ]
    words += ["sign", "cyclic", "singular", "orthogonal", "cayley", "rotation", "over_rank", "site", "layer"]
    words += ["controlled_z", "rotary", "svd", "A", "- A B", "A A", "same", "required", "centered", "free", "zero"]
    return draw.choice([*words, " ".join(f"m{n}" for n in range(draw.choice(MANY[:3]))), "r " * draw.choice(MANY)])


def places_of(data: Any, place: tuple = ()) -> Iterator[tuple]:
    """The place of every number, string, list and object."""
    yield place
    for key in list(data) if isinstance(data, dict) else range(min(len(data), 6)) if isinstance(data, list) else ():
        yield from places_of(data[key], (*place, key))


def changed(data: Any, draw: random.Random) -> Any:
    """Return plain data with one number, string, list or object changed."""
    whole = {"": copy.deepcopy(data)}
    *way, last = ("", *draw.choice(list(places_of(data))))
    owner: Any = whole
    for key in way:
        owner = owner[key]
    old = owner[last]
    if isinstance(old, dict) and old and draw.random() < 0.8:
        some = draw.choice(list(old))
        more = draw.choice([{any_text(draw): old[some]}, {f"k{n}": old[some] for n in range(draw.choice(MANY))}, {}])
        owner[last] = {key: value for key, value in old.items() if key != some or draw.random() < 0.5} | more
    elif isinstance(old, list) and draw.random() < 0.8:
        owner[last] = draw.choice([old * draw.choice(MANY), old[1:], [old], [[0, n] for n in range(draw.choice(MANY))]])
    elif isinstance(old, str) and draw.random() < 0.8:
        owner[last] = draw.choice([any_text(draw), f"{old} {old}", f"{old}x", old[1:]])
    else:
        owner[last] = draw.choice(NUMBERS)
    return whole[""]


def taken(content: bytes) -> tuple[dict, dict, bytes]:
    """Return the header, the text in it and the numbers of a file."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["tnadapt"].partition(" ")[2]), content[8 + length :]


def as_format_1(content: bytes) -> bytes:
    """Return a file in format 1, with the same numbers."""
    header, text, body = taken(content)
    plain = json.dumps(older(text))
    whole = json.dumps(header | {"__metadata__": {"tnadapt": f"{digest(plain)} {plain}"}}).encode()
    return len(whole).to_bytes(8, "little") + whole + body


def forge(content: bytes, draw: random.Random) -> bytes:
    """Return the bytes of a valid file with one to three changes, and the right digest of its text."""
    header, text, body = taken(content)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        if draw.random() < 0.8:
            text = changed(text, draw)
        else:
            tensors = changed(tensors, draw)
    plain = json.dumps(text)
    sealed = {"__metadata__": {"tnadapt": f"{digest(plain)} {plain}"}}
    whole = json.dumps(sealed | tensors if isinstance(tensors, dict) else tensors).encode()
    claimed = len(whole) if draw.random() < 0.95 else draw.choice([0, len(whole) - 1, 2**26, 2**40, 2**64 - 1])
    return claimed.to_bytes(8, "little") + whole + body
