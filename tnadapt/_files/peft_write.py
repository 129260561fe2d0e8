"""Write an adapter as a LoRA checkpoint that PEFT and servers of LoRAs can read."""

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
from tnadapt._files.peft_folder import PREFIX, write_folder
from tnadapt._language import Adapter, expect_adapter, expect_params, expect_path, without_magnitude
from tnadapt._progress import watched
from tnadapt._signature import answers, mistake, told
from tnadapt._structure import LoRA, check_exportable, exact_lora, join, shorten
from tnadapt._values import drawn_starts

__all__ = ["Written", "save_as_lora"]

PEFT_VERSION = "0.21.2"  # the release whose format is written
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
    base_model: str | None = None,
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
        FormatError: an update that is not finite in float32, an unknown task, or a folder that holds anything else.
    """
    expect_adapter(adapter, "save_as_lora", FormatError)
    expect_params(params, "save_as_lora", FormatError)
    expect_path(directory, "save_as_lora", FormatError)
    check_task(task_type, "save_as_lora")
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
    check_extra(extra or {})
    tensors = {f"{PREFIX}{name}": _checked(name, np.asarray(value)) for name, value in (extra or {}).items()}
    for path in parts:
        tensors |= _magnitude_of(adapter, params, path)
    values = {**params, **drawn_starts(adapter)}

    def lora_of(path: str) -> LoRA:
        sites = parts[path]
        loras = [exact_lora(below, values, site) for site in sites or adapter.weights[path]]
        return shorten(join(loras, sites) if sites else loras[0], rank)

    options = {
        "use_dora": bool(adapter.spec.magnitude),
        "base_model_name_or_path": base_model,
        "task_type": task_type,
        "fan_in_fan_out": fan_in_fan_out,
        "modules_to_save": list(modules_to_save) or None,
    }
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
            every |= _tensors(path, shape, lora)
            written[path] = Written(lora.rank, lora.error)
            scales[path] = lora.scale
    common = Counter(scales.values()).most_common(1)[0][0] or 1.0
    for path, scale in scales.items():
        if scale != common:
            name = _name_of(path, "lora_B.weight")
            every[name] = _checked(f"{path}: lora_B.weight", every[name].astype(np.float64) * (scale / common))
    ranks = {path: site.rank for path, site in written.items()}
    card = card_of(options, made, ranks, {path: site.error for path, site in written.items()})
    write_folder(directory, {**_config(ranks, common), **options}, every, card)
    return written


def _name_of(path: str, part: str) -> str:
    return f"{PREFIX}{path}.{part}"


def check_task(task_type: str | None, where: str) -> None:
    """Raise FormatError for a task that PEFT does not know."""
    if task_type is not None and task_type not in TASK_TYPES:
        wanted = f"one of {', '.join(TASK_TYPES)} as task_type"
        raise mistake(FormatError, where, wanted, told(task_type), "Or leave it out.")


def _tensors(path: str, shape: tuple[int, ...], lora: LoRA) -> dict[str, npt.NDArray[np.float32]]:
    """Return both factors under PEFT's names. For a convolution, A has the kernel and B has a kernel of size 1."""
    inner = shape[1:]
    down, up = lora.A.reshape(lora.rank, *inner), lora.B.reshape(shape[0], lora.rank, *[1] * (len(inner) - 1))
    return {
        _name_of(path, name): _checked(f"{path}: {name}", value)
        for name, value in (("lora_A.weight", down), ("lora_B.weight", up))
    }


def _magnitude_of(
    adapter: Adapter, params: Mapping[str, npt.ArrayLike], path: str
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the magnitude of a weight under PEFT's name, if the adapter has one."""
    found = adapter.address(adapter.weights[path][0]).magnitude if adapter.spec.magnitude else None
    if found is None:
        return {}
    if found.lengths.name not in params:
        raise SiteError(f"params: expected an array {found.lengths.name!r}, got none.\nPass all params of the adapter.")
    lengths = np.asarray(params[found.lengths.name])[found.lengths.cut].reshape(-1)
    name = _name_of(path, "lora_magnitude_vector")
    return {name: _checked(f"{path}: lora_magnitude_vector", lengths)}


def _checked(name: str, value: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(value, dtype=np.float32)
    if not np.isfinite(single).all():
        raise FormatError(
            f"{name}: expected numbers that are finite in float32, got NaN or infinity.\nNothing was written."
        )
    return single


def _config(ranks: Mapping[str, int], scale: float) -> dict[str, Any]:
    """Return PEFT's options: the rank of most weights, and patterns of whole paths for the others."""
    rank = Counter(ranks.values()).most_common(1)[0][0]
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
