"""Count what a step launches, and the bytes that it reads and writes of arrays of tokens x width. Nothing is timed.

The profiler of torch writes a trace with the shapes of every operator's inputs and outputs. An operator counts as one
launch, whatever it calls; operators that only call others, views and allocations count as none.
"""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import ExecutionTraceObserver

__all__ = ["Counts", "count"]

# Operators that are one kernel, though they call others on a CPU: to copy a bias, or to clear a sum.
WHOLE = {"addmm", "baddbmm", "addbmm", "addmv", "sum", "mean", "prod", "norm", "native_layer_norm", "_fused_rms_norm"}
OVERWRITTEN = {"copy_", "fill_", "zero_", "normal_", "uniform_"}  # operators that do not read what they write
VIEWS = {"_unsafe_view", "_reshape_alias", "unsafe_split_with_sizes"}  # whose schemas do not say so
ACCUMULATE = {"addmm", "addmm_", "baddbmm", "baddbmm_"}
LIBRARIES = ("aten", "tnadapt")  # whose operators are counted; the others are marks, such as those of autograd


@dataclass(frozen=True)
class Counts:
    """What one step took: launches, the bytes of arrays of tokens x width, and the number of launches by operator."""

    launches: int
    bytes: int
    operators: Mapping[str, int]

    def __sub__(self, other: "Counts") -> "Counts":
        """Return what this step takes more than another."""
        more = {name: number - other.operators.get(name, 0) for name, number in self.operators.items()}
        less = {name: -number for name, number in other.operators.items() if name not in self.operators}
        operators = {name: number for name, number in (more | less).items() if number}
        return Counts(self.launches - other.launches, self.bytes - other.bytes, operators)


def count(step: Callable[[], Any], *, tokens: int, width: int) -> Counts:
    """Run a step twice and count the second run: the first may plan, write code or fill caches.

    Bytes are those of arrays with at least `tokens` times `width` numbers and exactly one axis that is a multiple of
    `tokens`: others may be merged with it. So `tokens` must divide no other size that occurs.
    """
    step()
    nodes = _trace(step)
    children: dict[int, list[dict[str, Any]]] = {}
    for node in nodes.values():
        children.setdefault(node["ctrl_deps"], []).append(node)
    roots = [node for node in nodes.values() if node["ctrl_deps"] not in nodes or node["ctrl_deps"] == node["id"]]
    launched = [one for root in roots for one in _launched(root, children)]
    operators = Counter(_name(node) for node in launched)
    total = sum(_bytes(shape, strides, size, tokens, width) for one in launched for shape, strides, size in _moved(one))
    return Counts(len(launched), total, operators)


def _trace(step: Callable[[], Any]) -> dict[int, dict[str, Any]]:
    """Return the nodes of a run of a step by their numbers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        observer = ExecutionTraceObserver()
        observer.register_callback(str(path))
        observer.start()
        try:
            step()
        finally:
            observer.stop()
            observer.unregister_callback()
        nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    return {node["id"]: node for node in nodes}


def _launched(node: dict[str, Any], children: Mapping[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the operators below a node, itself included, that are one launch each."""
    own = _launches(node)
    if (own and _name(node) in WHOLE) or _name(node).startswith("_scaled_dot_product"):
        return [node]
    inner = [one for child in children.get(node["id"], ()) if child is not node for one in _launched(child, children)]
    if own and not any(any(node["outputs"]["shapes"]) for node in inner):
        return [node]  # what it calls makes at most numbers: one of Python, to multiply by
    return inner


def _name(node: Mapping[str, Any]) -> str:
    return str(node["name"]).rpartition("::")[2]


def _schema(node: Mapping[str, Any]) -> str:
    return next((str(one["value"]) for one in node["attrs"] if one["name"] == "op_schema"), "")


def _launches(node: Mapping[str, Any]) -> bool:
    """Return whether a node is an operator that computes: neither a view, nor an allocation, nor a read of a number."""
    if str(node["name"]).partition("::")[0] not in LIBRARIES or "empty" in node["name"]:
        return False
    takes, _, gives = _schema(node).rpartition("->")
    writes = "!)" in takes
    is_view = ("(a" in gives and "!" not in gives) or _name(node) in VIEWS
    return writes or (not is_view and any("Tensor" in one for one in node["outputs"]["types"]))


def _moved(node: Mapping[str, Any]) -> Iterator[tuple[list[int], list[int], int]]:
    """Yield the shape, the strides and the bytes of a number of each array that an operator reads or writes."""
    inputs, name = list(_arrays(node["inputs"])), _name(node)
    if ".out(" in _schema(node):
        inputs = inputs[:-1]
    is_overwritten = name in OVERWRITTEN or (name in ACCUMULATE and _beta(node) == 0)
    read = {value[1:4]: one for value, *one in inputs[1 if is_overwritten else 0 :]}  # the same array is read once
    yield from (*read.values(), *(one for _, *one in _arrays(node["outputs"])))


def _beta(node: Mapping[str, Any]) -> float:
    """Return what an accumulating product multiplies its sum by, which is the first number among its inputs."""
    return next((one for one in node["inputs"]["values"] if isinstance(one, int | float)), 1)


def _arrays(ends: Mapping[str, Any]) -> Iterator[tuple[tuple[Any, ...], list[int], list[int], int]]:
    """Yield the identity, the shape, the strides and the bytes of a number of each tensor, those in lists included."""
    for value, shape, kind, strides in zip(ends["values"], ends["shapes"], ends["types"], ends["strides"], strict=True):
        if kind.startswith("Tensor"):
            yield tuple(value), shape, strides, value[4]
        elif kind.startswith("GenericList[Tensor"):
            for one, own, lengths in zip(value, shape, strides, strict=True):
                yield tuple(one), own, lengths, one[4]


def _bytes(shape: list[int], strides: list[int], size: int, tokens: int, width: int) -> int:
    """Return the bytes of an array of tokens x width, and 0 of any other; an axis without stride is one row."""
    held = [length for length, stride in zip(shape, strides, strict=True) if stride or length == 1]
    numbers, axes = math.prod(held), sum(length > 0 and length % tokens == 0 for length in held)
    return size * numbers if axes == 1 and numbers >= tokens * width else 0
