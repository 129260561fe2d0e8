"""Write an adapter as a LoRA checkpoint that PEFT and servers of LoRAs can read."""

import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from re import escape
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tnadapt._errors import FormatError, PlanError, SiteError
from tnadapt._files.limits import check_extra
from tnadapt._files.peft_card import Made, card_of
from tnadapt._files.peft_folder import METHODS, PREFIX, write_folder
from tnadapt._language import Adapter, expect_adapter, expect_params, expect_path, without_magnitude
from tnadapt._progress import watched
from tnadapt._signature import answers, expect_flag, expect_names, mistake, told
from tnadapt._structure import LoRA, check_exportable, exact_lora, join, shorten
from tnadapt._values import drawn_starts

__all__ = ["Written", "save_as_lora"]

Array = npt.NDArray[np.float64]

PEFT_VERSION = "0.21.2"  # the release whose format is written
TINY, HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
TASK_TYPES = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")


class Written(NamedTuple):
    """The rank that was written for one weight, and the relative error of its update, which is 0.0 if exact."""

    rank: int
    error: float


@answers(FormatError)
def save_as_lora(
    adapter: Adapter,
    params: Mapping[str, npt.ArrayLike],
    directory: str | os.PathLike[str],
    *,
    rank: int | None = None,
    base_model: str | os.PathLike[str] | None = None,
    task_type: str | None = None,
    fan_in_fan_out: bool = False,
    extra: Mapping[str, npt.ArrayLike] | None = None,
    modules_to_save: Collection[str] = (),
) -> dict[str, Written]:
    """Write a LoRA checkpoint of PEFT with the updates of all weights, each as `to_lora` returns it, in float32.

    A model card, README.md, tells what it was made from and how to load it. One that you changed is kept.

    Args:
        adapter: any adapter.
        params: its params.
        directory: a new folder, or one that holds an earlier checkpoint and nothing else. It is written completely or
            not at all.
        rank: the largest rank that a weight may have. Without it, every weight is exact.
        base_model: the name or path of the model, from which PEFT can load it.
        task_type: the task of the model in PEFT's words, such as "CAUSAL_LM". `AutoPeftModelForCausalLM` and its like
            open only a folder that tells it.
        fan_in_fan_out: as in PEFT: whether the host stores its weights as (in, out), like transformers' Conv1D.
        extra: the arrays of fully trained modules, by their names in the host.
        modules_to_save: the paths of those modules.

    Returns:
        path -> the rank and the error of each weight.

    Raises:
        PlanError: an update of full rank without `rank`, or magnitudes of blocks. That of a magnitude is DoRA in PEFT,
            so its rank is that of the spec without it.
        SiteError: params that do not belong to this adapter; a weight of experts, or one whose sites serve several
            tasks.
        FormatError: an update that is not finite in float32, an unknown task, an extra array of no module in
            modules_to_save, or a folder that holds anything else.
    """
    expect_adapter(adapter, "save_as_lora", FormatError)
    expect_params(params, "save_as_lora", FormatError)
    expect_path(directory, "save_as_lora", FormatError)
    options = options_of("save_as_lora", base_model, task_type, fan_in_fan_out)
    saved = expect_names(modules_to_save, "save_as_lora", "modules_to_save", FormatError)
    tensors = _extra(extra or {}, saved)
    parts = {path: adapter.parts(path) for path in adapter.weights}
    below = without_magnitude(adapter)  # PEFT has the same magnitude, above a LoRA
    for path, sites in parts.items():
        check_exportable(below, sites or adapter.weights[path], rank, is_weight=bool(sites))
        if sites and adapter.spec.magnitude:
            raise PlanError(
                f"{path}: expected a magnitude for each row of a whole weight, got one for each of {len(sites)} "
                "blocks.\n"
                "PEFT has no magnitudes of blocks. Merge the update, or attach without blocks."
            )
    for path in parts:
        tensors |= _magnitude_of(adapter, params, path)
    values = {**params, **drawn_starts(adapter)}

    def lora_of(path: str) -> LoRA:
        sites = parts[path]
        loras = [exact_lora(below, values, site) for site in sites or adapter.weights[path]]
        whole = join(loras, sites) if sites else loras[0]
        if not (np.isfinite(whole.A).all() and np.isfinite(whole.B).all()):
            raise FormatError(f"{path}: expected a finite update, got NaN or infinity.\nNothing was written.")
        return shorten(whole, rank)

    options |= {"use_dora": bool(adapter.spec.magnitude), "modules_to_save": saved or None}
    shapes = {path: sites[0].weight_shape for path, sites in adapter.weights.items()}
    made = Made(f"an adapter of the spec `{adapter.spec.name}`", adapter.spec.name)
    return write_loras(Path(directory), shapes, lora_of, options, tensors, made=made)


def write_loras(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    lora_of: Callable[[str], LoRA],
    options: Mapping[str, Any],
    tensors: Mapping[str, npt.NDArray[np.float32]],
    *,
    made: Made,
) -> dict[str, Written]:
    """Write the LoRA of each weight, with further options of PEFT, further tensors and a model card, to a folder.

    All have one scale, that of most weights; the rest of another scale is multiplied into B. Servers such as vLLM take
    the scale from `r` and `lora_alpha` alone, and would silently serve a weight whose own ones lie in the patterns.
    """
    every = dict(tensors)
    written, scales = {}, {}
    with watched(shapes.items(), "export as LoRA") as weights:
        for path, shape in weights:
            lora = lora_of(path)
            every |= _tensors(path, shape, lora.A, lora.B)
            written[path] = Written(lora.rank, lora.error)
            scales[path] = lora.scale
    common = Counter(scales.values()).most_common(1)[0][0] or 1.0
    for path, scale in scales.items():
        if scale != common:
            down, up = (every[_name_of(path, f"lora_{part}.weight")].astype(np.float64) for part in "AB")
            with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are refused
                every |= _tensors(path, shapes[path], down, up * (scale / common))
    ranks = {path: site.rank for path, site in written.items()}
    card = card_of(options, made, ranks, {path: site.error for path, site in written.items()})
    write_folder(directory, {**_config(ranks, common), **options}, every, card)
    return written


def _name_of(path: str, part: str) -> str:
    return f"{PREFIX}{path}.{part}"


def options_of(
    where: str, base_model: str | os.PathLike[str] | None, task_type: str | None, fan_in_fan_out: bool
) -> dict[str, Any]:
    """Return what is told of the model as options of PEFT. Raises FormatError for anything that PEFT does not know."""
    if not isinstance(base_model, str | os.PathLike | None):
        wanted = "the name or the path of a model as base_model"
        raise mistake(FormatError, where, wanted, told(base_model), "Or leave it out.")
    expect_flag(fan_in_fan_out, where, "fan_in_fan_out", FormatError)
    if task_type is not None and task_type not in TASK_TYPES:
        wanted = f"one of {', '.join(TASK_TYPES)} as task_type"
        raise mistake(FormatError, where, wanted, told(task_type), "Or leave it out.")
    base = None if base_model is None else os.fspath(base_model)
    return {"base_model_name_or_path": base, "task_type": task_type, "fan_in_fan_out": fan_in_fan_out}


def _extra(extra: Mapping[str, npt.ArrayLike], modules: Collection[str]) -> dict[str, npt.NDArray[np.float32]]:
    """Return the arrays of fully trained modules under PEFT's names."""
    check_extra(extra)
    arrays = {name: np.asarray(value) for name, value in extra.items()}
    ends = tuple(f".{end}" for end in METHODS["LORA"].factors)
    for name, array in arrays.items():
        owner = f".{name.rpartition('.')[0]}."
        if name.endswith(ends) or not any(f".{module}." in owner for module in modules):
            raise FormatError(
                f"extra: expected arrays of the modules in modules_to_save, got {name!r}.\n"
                "PEFT reads no others. Name their modules in modules_to_save."
            )
        if array.dtype.kind not in "fV":  # V: bfloat16, which numpy does not know
            came = str(array.dtype) if array.dtype.kind in "biuc" else array.dtype.type.__name__.rstrip("_")
            raise FormatError(f"{name}: expected floating-point numbers, got {came}.\nNothing was written.")
    return {f"{PREFIX}{name}": _checked(name, array) for name, array in arrays.items()}


def _tensors(path: str, shape: tuple[int, ...], down: Array, up: Array) -> dict[str, npt.NDArray[np.float32]]:
    """Return both factors under PEFT's names. For a convolution, A has the kernel and B has a kernel of size 1."""
    inner, rank = shape[1:], len(down)
    down, up = _balanced(down.reshape(rank, *inner), up.reshape(shape[0], rank, *[1] * (len(inner) - 1)))
    return {
        _name_of(path, name): _checked(f"{path}: {name}", value)
        for name, value in (("lora_A.weight", down), ("lora_B.weight", up))
    }


def _balanced(down: Array, up: Array) -> tuple[Array, Array]:
    """Return both factors, with a power of two moved from one to the other where float32 could not hold one alone."""
    sizes = [float(np.abs(one).max()) for one in (down, up)]
    is_held = all(TINY <= size <= HUGE for size in sizes)
    if is_held or not all(0 < size < math.inf for size in sizes):
        return down, up
    shift = round((math.log2(sizes[1]) - math.log2(sizes[0])) / 2)
    return np.ldexp(down, shift), np.ldexp(up, -shift)


def _magnitude_of(
    adapter: Adapter, params: Mapping[str, npt.ArrayLike], path: str
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the magnitude of a weight under PEFT's name, if the adapter has one. That of a kernel has its axes."""
    found = adapter.address(adapter.weights[path][0]).magnitude if adapter.spec.magnitude else None
    if found is None:
        return {}
    if found.lengths.name not in params:
        raise SiteError(f"params: expected an array {found.lengths.name!r}, got none.\nPass all params of the adapter.")
    lengths = np.asarray(params[found.lengths.name])[found.lengths.cut].reshape(-1)
    if kernel := adapter.weights[path][0].weight_shape[2:]:
        lengths = lengths.reshape(1, -1, *[1] * len(kernel))
    name = _name_of(path, "lora_magnitude_vector")
    return {name: _checked(f"{path}: lora_magnitude_vector", lengths)}


def _checked(name: str, value: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        single = np.asarray(value, dtype=np.float32, order="C")
    if not np.isfinite(single).all():
        raise FormatError(
            f"{name}: expected numbers that are finite in float32, got NaN or infinity.\nNothing was written."
        )
    return single


def _config(ranks: Mapping[str, int], scale: float) -> dict[str, Any]:
    """Return PEFT's options: the largest rank, and patterns of whole paths for weights of other ranks.

    Servers such as vLLM have room for the rank that `r` tells, and take that of a weight from its tensors.
    """
    rank = max(ranks.values())
    others = {f"^{escape(path)}": own for path, own in ranks.items() if own != rank}
    return {
        "peft_type": "LORA",
        "peft_version": PEFT_VERSION,
        "inference_mode": True,
        "target_modules": list(ranks),
        "r": rank,
        "rank_pattern": others,
        "lora_alpha": scale * rank,
        "alpha_pattern": {path: scale * own for path, own in others.items()},  # PEFT divides it by the rank
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "init_lora_weights": True,
    }
