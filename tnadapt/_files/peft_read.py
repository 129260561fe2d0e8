"""Read a PEFT checkpoint of LoRA, VeRA, LoHa or LoKr as a tnadapt adapter of the family of that name."""

import math
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tnadapt._errors import FormatError, SiteError, SpecError
from tnadapt._files.content import Checkpoint
from tnadapt._files.limits import MOST_MADE, PADDED, check_binding, keep, shorten
from tnadapt._files.peft_folder import AXES, Array, Folder, Stored, open_folder
from tnadapt._hosts import sites_of
from tnadapt._language import Adapter, AdapterSpec, count, expect_path, magnitude, split_evenly
from tnadapt._signature import answers
from tnadapt.families import loha, lokr, lora, vera

__all__ = ["read_peft"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Part:
    """The content of a checkpoint for one module: the weight's shape, alpha, rank, scale, and named factors."""

    shape: tuple[int, int]
    alpha: float
    rank: int
    scale: float
    factors: Mapping[str, Stored]


@dataclass(frozen=True)
class Converted:
    """A checkpoint in our terms, before any of its tensors is read.

    `scaled` is the factor that is multiplied by the ratio of a module's scale to the adapter's; `shared` are factors of
    the whole adapter.
    """

    spec: AdapterSpec
    parts: Mapping[str, Part]
    scaled: str
    rank: Mapping[str, int]
    sizes: Mapping[str, int] = field(default_factory=dict)
    shared: Mapping[str, Stored] = field(default_factory=dict)


@answers(FormatError)
def read_peft(directory: str | os.PathLike[str], *, shapes: Shapes | None = None) -> Checkpoint:
    """Read a checkpoint that PEFT wrote as a tnadapt adapter and its params. Loading runs no code.

    Supported are LoRA, DoRA, VeRA, LoHa and LoKr on linear layers; the updates are equal to PEFT's. An adapter has one
    rank, so if ranks differ, smaller factors are padded with zeros. If scales differ, one factor takes the ratio.
    In LoKr, a first factor that is stored as a product is multiplied out. So is a second one if another module stores
    its second factor whole. Fully trained modules are returned as `extra`.

    Args:
        directory: the folder with adapter_config.json and adapter_model.safetensors.
        shapes: path of a module -> shape (out, in) of its weight in the model of the checkpoint. If given, the factors
            are checked against it. VeRA needs it, since its files do not contain the length of the in axes.

    Raises:
        FormatError: another method; an option that changes what the factors mean, such as lora_bias; a start
            that changed the model's weights; a pickle; a file that is damaged, or has a missing or unknown factor; a
            checkpoint of another model; scales or products that the dtype of the factors cannot hold.
        FileNotFoundError: no checkpoint in the folder.
    """
    expect_path(directory, "read_peft", FormatError)
    with open_folder(Path(directory)) as folder:
        if shapes is not None and (missing := [path for path in folder.modules if len(shapes.get(path, ())) != AXES]):
            raise folder.fault(f"expected a model where {missing[0]} is a linear layer", "one where it is not")
        try:
            adapter, found = _adapter_of(folder, shapes)
        except (SiteError, SpecError) as error:
            raise folder.fault("expected a checkpoint of one valid adapter", "another", shorten(error)) from error
        if shapes is not None and (odd := [site for site in adapter.sites if shapes[site.path] != site.shape]):
            rule = f"expected a model where {odd[0].path} has a weight of shape {odd[0].shape}"
            raise folder.fault(rule, f"{shapes[odd[0].path]}")
        most = max(MOST_MADE, PADDED * folder.numbers)
        keep(directory, "numbers with one rank for all modules", count(adapter).trainable + count(adapter).frozen, most)
        extra = {name: value.read() for name, value in folder.extra.items()}
        return Checkpoint(adapter, _params(folder, adapter, found), extra)


def _adapter_of(folder: Folder, shapes: Shapes | None) -> tuple[Adapter, Converted]:
    """Bind the family of the checkpoint to its modules."""
    match folder.method:
        case "LORA":
            found = _read_lora(folder)
        case "LOHA":
            found = _read_loha(folder)
        case "LOKR":
            found = _read_lokr(folder)
        case "VERA":
            found = _read_vera(folder, shapes)
        case _:
            raise folder.fault("LORA, LOHA, LOKR and VERA are read", f"this one is {folder.method}")
    places = sites_of({path: part.shape for path, part in found.parts.items()})
    check_binding(found.spec, places, found.sizes)
    adapter = found.spec.bind(places, rank=found.rank, sizes=found.sizes, overparametrized=True)  # PEFT allows any rank
    return adapter, found


def _read_lora(folder: Folder) -> Converted:
    is_root, is_dora = (bool(folder.config.get(option)) for option in ("use_rslora", "use_dora"))
    parts = {}
    for path, found in folder.modules.items():
        rank, alpha = folder.rank(path), folder.alpha(path, "lora_alpha")
        shape = _outer(folder, path, "B", "A", rank)
        lengths = found["magnitude"].shape if "magnitude" in found else None
        if lengths != (shape[:1] if is_dora else None):
            rule = f"expected a magnitude of shape {shape[:1]}" if is_dora else "expected no magnitude without use_dora"
            raise folder.fault(f"{path}: {rule}", "none" if lengths is None else f"one of shape {lengths}")
        parts[path] = Part(shape, alpha, rank, alpha / (math.sqrt(rank) if is_root else rank), found)
    most = max(part.rank for part in parts.values())
    alpha = _one_alpha(parts, math.sqrt(most) if is_root else most)
    spec = lora(alpha=alpha, rank_stabilized=is_root)
    return Converted(magnitude(spec) if is_dora else spec, parts, "B", {"r": most})


def _read_loha(folder: Folder) -> Converted:
    parts = {}
    for path, found in folder.modules.items():
        rank, alpha = folder.rank(path), folder.alpha(path, "alpha")
        shape, other = (_outer(folder, path, f"A{number}", f"B{number}", rank) for number in (1, 2))
        if shape != other:
            raise folder.fault(f"{path}: expected two products of the same shape", f"{shape} and {other}")
        parts[path] = Part(shape, alpha, rank, alpha / rank, found)
    most = max(part.rank for part in parts.values())
    return Converted(loha(alpha=_one_alpha(parts, most)), parts, "A1", {"p": most, "q": most})


def _read_lokr(folder: Folder) -> Converted:
    is_whole = any("w2" in found for found in folder.modules.values())
    parts = {}
    for path, found in folder.modules.items():
        rank = folder.rank(path)
        scale = folder.alpha(path, "alpha") / rank  # PEFT divides by the rank even if no factor has it
        left, right = (_product(folder, path, name, rank) for name in ("w1", "w2"))
        second = {"A": right} if is_whole else {"A": found["w2_a"], "B": found["w2_b"]}
        shape = (left.shape[0] * right.shape[0], left.shape[1] * right.shape[1])
        parts[path] = Part(shape, scale if is_whole else scale * rank, rank, scale, {"C": left} | second)
    most = max(part.rank for part in parts.values())
    sizes = _split(folder, parts, "o", 0) | _split(folder, parts, "i", 1)
    spec = lokr(alpha=_one_alpha(parts, 1 if is_whole else most), low_rank=not is_whole)
    return Converted(spec, parts, "C", {} if is_whole else {"r": most}, sizes)


def _read_vera(folder: Folder, shapes: Shapes | None) -> Converted:
    for name in ("vera_A", "vera_B"):
        if name not in folder.shared:
            raise folder.fault(
                f"expected the projection {name} of VeRA in the file",
                "none",
                "PEFT draws it with torch's generator. Load the checkpoint with PEFT and save it again with "
                "save_projection=True.",
            )
    if shapes is None:
        raise folder.fault(
            "expected the shapes of the weights, since VeRA's files do not contain the in axes", "none", "Pass shapes."
        )
    parts = {}
    for path, found in folder.modules.items():
        rank, (out, into) = folder.rank(path), shapes[path]
        for name, length in (("b", out), ("d", rank)):
            if name not in found or found[name].shape != (length,):
                came = f"{found[name].shape}" if name in found else "none"
                raise folder.fault(f"{path}: expected a vera_lambda_{name} of shape ({length},)", came)
        parts[path] = Part((out, into), 1.0, rank, 1.0, found)
    rank = max(part.rank for part in parts.values())
    out, into = (max(part.shape[axis] for part in parts.values()) for axis in (0, 1))
    down, up = folder.shared["vera_A"], folder.shared["vera_B"]
    is_long = len(down.shape) == len(up.shape) == AXES and down.shape[1] >= into and up.shape[0] >= out
    if not is_long or (down.shape[0], up.shape[1]) != (rank, rank):
        rule = f"expected a vera_A of at least {rank} x {into} and a vera_B of at least {out} x {rank}"
        raise folder.fault(rule, f"shapes {down.shape} and {up.shape}")
    shared = {"A": _leading(down, rank, into), "B": _leading(up, out, rank)}
    return Converted(vera(), parts, "b", {"r": rank}, shared=shared)


def _leading(stored: Stored, rows: int, columns: int) -> Stored:
    def read() -> Array:
        return stored.read()[:rows, :columns].copy()

    return Stored((rows, columns), read)


def _params(folder: Folder, adapter: Adapter, found: Converted) -> dict[str, Array]:
    """Read every factor, and convert those of every module to the rank and scale of the adapter."""
    params: dict[str, Array] = {}
    for group in adapter.groups:
        part, scale = found.parts[group.sites[0].path], group.network.scale
        for factor, stored in part.factors.items():
            shape, value = group.network.shape(factor), stored.read()
            filled = np.pad(value, [(0, size - length) for size, length in zip(shape, value.shape, strict=True)])
            if factor == found.scaled and part.scale != scale:
                made = filled.astype(np.float64) * (part.scale / scale)
                if part.scale != 0 and _is_lost(made, filled):
                    path, name = group.sites[0].path, filled.dtype.name
                    rule = f"{path}: expected a {factor} whose products with its scale {name} can hold"
                    raise folder.fault(rule, f"a scale of {part.scale:.3g} beside one of {scale:.3g}")
                filled = made.astype(filled.dtype)
            params[adapter.slot_name(group, factor)] = filled
    return params | {name: value.read() for name, value in found.shared.items()}


def _is_lost(made: Array, *sources: Array) -> bool:
    """Return whether numbers that were made of others leave the range of their dtype, which the others fill."""
    held = np.finfo(sources[0].dtype)

    def is_within(array: Array) -> bool:
        return float(held.tiny) <= float(np.abs(array).max()) <= float(held.max)

    return all(map(is_within, sources)) and not is_within(made)


def _one_alpha(parts: Mapping[str, Part], divisor: float) -> float:
    """Return the alpha of all modules. If they differ, return that of the largest scale at the largest rank."""
    first, *others = parts.values()
    if all((part.alpha, part.rank) == (first.alpha, first.rank) for part in others):
        return first.alpha
    return max((part.scale for part in parts.values()), key=abs) * divisor


def _split(folder: Folder, parts: Mapping[str, Part], side: str, axis: int) -> dict[str, int]:
    """Return the size that splits an axis of every weight as in the file, or no size if the split is even."""
    firsts = [part.factors["C"].shape[axis] for part in parts.values()]
    split = [(first, part.shape[axis] // first) for first, part in zip(firsts, parts.values(), strict=True)]
    if all(split_evenly(first * second, 2) == (first, second) for first, second in split):
        return {}
    for number, sizes in enumerate(zip(*split, strict=True), start=1):
        if len(set(sizes)) == 1:
            return {f"{side}{number}": sizes[0]}
    raise folder.fault(
        "expected weights whose axes are split evenly, or with a part of one size",
        f"a split into {reprlib.repr(sorted(set(split)))} by "
        f"decompose_factor={reprlib.repr(folder.config.get('decompose_factor'))}",
    )


def _product(folder: Folder, path: str, name: str, rank: int) -> Stored:
    """Return one of the two matrices of a LoKr: as stored, or the product of its two parts."""
    pair = {f"{name}_a", f"{name}_b"}
    held = {name, *pair} & folder.modules[path].keys()
    if held not in ({name}, pair):
        came = ", ".join(sorted(held)) or "neither"
        raise folder.fault(f"{path}: expected {name}, or {name}_a and {name}_b", came)
    if held == {name}:
        return folder.matrix(path, name)
    shape = _outer(folder, path, f"{name}_a", f"{name}_b", rank)
    left, right = folder.matrix(path, f"{name}_a"), folder.matrix(path, f"{name}_b")

    def multiply() -> Array:
        first, second = left.read(), right.read()
        product: Array = first.astype(np.float64) @ second.astype(np.float64)
        if product.any() and _is_lost(product, first, second):
            rule = f"{path}: expected a product of {name}_a and {name}_b that {first.dtype.name} can hold"
            raise folder.fault(rule, f"one of size {np.abs(product).max():.3g}")
        return product.astype(first.dtype)

    return Stored(shape, multiply)


def _outer(folder: Folder, path: str, left: str, right: str, rank: int) -> tuple[int, int]:
    """Return the shape of left @ right. Raises FormatError unless their inner axes have the length of the rank."""
    (out, inner), (other, into) = folder.matrix(path, left).shape, folder.matrix(path, right).shape
    if (inner, other) != (rank, rank):
        raise folder.fault(
            f"{path}: expected {left} and {right} joined by its rank, {rank}",
            f"shapes {(out, inner)} and {(other, into)}",
        )
    return out, into
