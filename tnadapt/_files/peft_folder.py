"""The folder of a PEFT checkpoint: its config and tensors, strictly validated, and written completely or not at all."""

import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from tnadapt._errors import FormatError
from tnadapt._files.text import parse

__all__: list[str] = []

Array = npt.NDArray[np.floating[Any]]
CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
MOST_BYTES = 2**24  # the size limit of a config
DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}


@dataclass(frozen=True)
class Method:
    """How PEFT stores a method: the endings of its tensors' names, and the options that may be set.

    `factors` maps the ending of a name to a short name. `shared` holds whole names after "base_model.". `options` are
    those that are read or that do not change what the tensors mean.
    """

    factors: Mapping[str, str]
    options: str
    shared: tuple[str, ...] = ()


HARMLESS = (
    "auto_mapping base_model_name_or_path bias exclude_modules inference_mode init_weights layers_pattern "
    "layers_to_transform modules_to_save peft_type peft_version r revision target_modules task_type "
)
OF_LYCORIS = "alpha alpha_pattern module_dropout rank_dropout rank_pattern use_effective_conv2d "
# fan_in_fan_out describes how the host stores its weight; A is (r, in) and B is (out, r) in both cases.
METHODS = {
    "LORA": Method(
        {"lora_A.weight": "A", "lora_B.weight": "B"},
        HARMLESS + "alpha_pattern eva_config fan_in_fan_out init_lora_weights lora_alpha lora_dropout megatron_core "
        "qalora_group_size rank_pattern runtime_config use_rslora",
    ),
    "VERA": Method(
        {"vera_lambda_b": "b", "vera_lambda_d": "d"},
        HARMLESS + "d_initial fan_in_fan_out projection_prng_key save_projection vera_dropout",
        ("vera_A", "vera_B"),
    ),
    "LOHA": Method(
        {"hada_w1_a": "A1", "hada_w1_b": "B1", "hada_w2_a": "A2", "hada_w2_b": "B2"},
        HARMLESS + OF_LYCORIS,
    ),
    "LOKR": Method(
        {f"lokr_{name}": name for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
        HARMLESS + OF_LYCORIS + "decompose_both decompose_factor rank_dropout_scale",
    ),
}
STRANGERS = {  # endings of the names of tensors that are not supported
    "lora_embedding_A": "an embedding",
    "lora_embedding_B": "an embedding",
    "lora_magnitude_vector.weight": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_B.bias": "lora_bias",
    "hada_t1": "a convolution",
    "hada_t2": "a convolution",
    "lokr_t2": "a convolution",
}
AXES = 2  # of a factor
PATTERN = re.compile(r"[\w.\-\\^$|()*+\[\]]{1,500}")  # without braces or question marks
MOST_REPEATS, MOST_GROUPS = 2, 4
LONGEST_PATH, LONGEST_NUMBER = 500, 10
STARTS = (None, True, False, "gaussian", "orthogonal", "eva")  # these do not change the host's weights


@dataclass(frozen=True)
class Folder:
    """The content of a checkpoint: the factors of each module by its path, shared factors, fully trained modules."""

    path: Path
    method: str
    config: Mapping[str, Any]
    modules: Mapping[str, Mapping[str, Array]]
    shared: Mapping[str, Array]
    extra: Mapping[str, Array]

    def fault(self, rule: str, came: str, todo: str = "") -> FormatError:
        """Return an error about this folder: what was expected, what came, and what to do."""
        return fault_of(self.path, rule, came, todo)

    def matrix(self, module: str, name: str) -> Array:
        """Return a factor of a module. Raises FormatError if it is missing or is not a matrix."""
        if name not in self.modules[module]:
            raise self.fault(f"{module}: expected a factor {name}", "none")
        value = self.modules[module][name]
        if value.ndim != AXES:
            raise self.fault(f"{module}: expected a matrix {name}, as of a linear layer", f"shape {value.shape}")
        return value

    def rank(self, module: str) -> int:
        """Return the rank of a module from the options r and rank_pattern. Raises FormatError for an invalid rank."""
        value = self._option(module, "r", "rank_pattern")
        if type(value) is not int or value < 1:
            raise self.fault(f"{module}: expected an integer of at least 1 as its rank", f"{value!r}")
        return value

    def alpha(self, module: str, key: str) -> float:
        """Return the alpha of a module from this option and alpha_pattern. Raises FormatError for an invalid alpha."""
        value = self._option(module, key, "alpha_pattern")
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.fault(f"{module}: expected a finite number as its alpha", f"{value!r}")
        return float(value)

    def _option(self, module: str, key: str, table: str) -> Any:
        """Return the value of the first pattern that matches a module, or else the option for all modules."""
        patterns = self.config.get(table) or {}
        if not isinstance(patterns, dict):
            raise self.fault(f"{table}: expected a mapping from patterns to numbers", f"{patterns!r}")
        for pattern, value in patterns.items():
            self._check_pattern(table, pattern)
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return value
            except re.error as error:
                raise self.fault(f"{table}: expected names and regular expressions", f"{pattern!r}: {error}") from None
        return self.config.get(key)

    def _check_pattern(self, table: str, pattern: str) -> None:
        """Raise FormatError for a regular expression whose search could take very long."""
        repeats, groups = sum(map(pattern.count, "*+")), pattern.count("(")
        if (
            not PATTERN.fullmatch(pattern)
            or repeats > MOST_REPEATS
            or groups > MOST_GROUPS
            or re.search(r"\)[*+]", pattern)
        ):
            raise self.fault(
                f"{table}: expected expressions with at most {MOST_REPEATS} repeats and {MOST_GROUPS} groups",
                f"{pattern[:100]!r}",
            )


def fault_of(path: Path, rule: str, came: str, todo: str = "") -> FormatError:
    """Return an error about a folder: what was expected, what came, and what to do."""
    return FormatError(f"{path}: {rule}, got {came}.{todo and chr(10)}{todo}")


def open_folder(directory: Path) -> Folder:
    """Read a checkpoint and assign each tensor to its module, without running code.

    Raises FormatError for a pickle, a damaged file, a method or an option that is not supported, or a tensor that does
    not belong to the method. Raises FileNotFoundError if there is no checkpoint.
    """
    config = _config_of(directory)
    name = config.get("peft_type")
    if not isinstance(name, str) or name not in METHODS:
        raise fault_of(directory, f"expected one of {', '.join(METHODS)} as peft_type", f"{name!r}")
    method = METHODS[name]
    _check_options(directory, config, method.options.split())
    modules: dict[str, dict[str, Array]] = {}
    shared: dict[str, Array] = {}
    extra: dict[str, Array] = {}
    for key, value in sorted(_tensors_of(directory).items(), key=lambda pair: _words(pair[0])):
        inner = key.removeprefix(PREFIX)
        end = next((end for end in method.factors if inner.endswith(f".{end}")), None)
        if key.removeprefix("base_model.") in method.shared:
            shared[key.removeprefix("base_model.")] = value
        elif key.startswith(PREFIX) and end is not None:
            modules.setdefault(inner.removesuffix(f".{end}"), {})[method.factors[end]] = value
        elif key.startswith(PREFIX) and _is_saved(inner, config.get("modules_to_save")):
            extra[inner] = value
        else:
            odd = next((what for end, what in STRANGERS.items() if inner.endswith(f".{end}")), "none of its factors")
            raise fault_of(directory, f"expected a checkpoint with factors of {name} alone", f"{key}, which is {odd}")
    if long := [path for path in modules if len(path) > LONGEST_PATH]:
        raise fault_of(directory, f"expected paths of at most {LONGEST_PATH} characters", f"{long[0][:100]!r}...")
    if not modules:
        raise fault_of(directory, f"expected a checkpoint with factors of {name} for at least one module", "none")
    return Folder(directory, name, config, modules, shared, extra)


def write_folder(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Array]) -> None:
    """Write both files of a checkpoint to a temporary folder, then rename it.

    An earlier checkpoint in the folder is replaced. Raises FormatError for a folder that holds anything else.
    """
    directory = directory.absolute()
    if directory.exists() and not directory.is_dir():
        raise fault_of(directory, "expected a folder for the checkpoint", "a file", "Nothing was written.")
    held = {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()
    if other := sorted(held - {CONFIG, TENSORS}):
        todo = "Name a new folder. Nothing was written."
        rule = "expected a new folder, or one that holds only an earlier checkpoint"
        raise fault_of(directory, rule, f"one that holds {other[0]}", todo)
    part, old = (directory.with_name(f".{directory.name}.{uuid.uuid4().hex}") for _ in range(2))
    part.mkdir(parents=True)
    try:
        (part / CONFIG).write_text(json.dumps(dict(sorted(config.items())), indent=2, allow_nan=False))
        save_file(dict(tensors), part / TENSORS, metadata={"format": "pt"})
        for name in (CONFIG, TENSORS):
            with (part / name).open("rb") as file:
                os.fsync(file.fileno())
        if held:
            directory.rename(old)
        try:
            part.rename(directory)
        except OSError:
            if held:
                old.rename(directory)
            raise
    finally:
        for path in (part, old):
            shutil.rmtree(path, ignore_errors=True)


def _config_of(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    if not path.is_file():
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise fault_of(directory, f"{CONFIG}: expected at most {MOST_BYTES:,} bytes", "more")
    try:
        return parse(content.decode())
    except (FormatError, UnicodeDecodeError) as error:
        came = f"a file that cannot be read ({str(error).rstrip('.')})"
        raise fault_of(directory, f"{CONFIG}: expected one JSON object", came) from None


def _check_options(directory: Path, config: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise FormatError for an option that is set and may change what the tensors mean."""
    for key, value in config.items():
        if key not in known and value not in (None, False, 0, "", [], {}):
            raise fault_of(directory, "expected a plain checkpoint", f"the option {key}={value!r}")
    if config.get("bias") not in (None, "none"):
        raise fault_of(directory, "expected updates of weights alone", f"the option bias={config['bias']!r}")
    start = config.get("init_lora_weights")
    if not any(start is one or (isinstance(one, str) and start == one) for one in STARTS):
        raise fault_of(
            directory,
            "expected an update that is added to the model's own weights",
            f"the start init_lora_weights={start!r}, which changes them or is not known",
            "Let PEFT convert it to an ordinary LoRA: save_pretrained(path_initial_model_for_weight_conversion=...).",
        )


def _words(key: str) -> list[tuple[int, str]]:
    """Return the sort key of a name: its parts, with numbers by size. The order in the file has no meaning."""
    return [(int(word) if word.isdecimal() and len(word) < LONGEST_NUMBER else -1, word) for word in key.split(".")]


def _is_saved(key: str, names: object) -> bool:
    """Return whether a tensor belongs to one of the fully trained modules."""
    owner = key.rpartition(".")[0]
    return isinstance(names, list) and any(isinstance(name, str) and f".{name}." in f".{owner}." for name in names)


def _tensors_of(directory: Path) -> dict[str, Array]:
    path = directory / TENSORS
    if not path.is_file():
        if (directory / PICKLE).exists():
            todo = "If you trust it, load it with PEFT and save it again with save_pretrained."
            raise fault_of(directory, f"expected tensors in {TENSORS}", f"only the pickle {PICKLE}", todo)
        raise FileNotFoundError(path)
    try:
        entries = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]  # safetensors has no types
    except SafetensorError as error:
        came = f"one that cannot be read: {error}"
        raise fault_of(directory, f"{TENSORS}: expected a whole safetensors file", came) from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in DTYPES:
            raise fault_of(directory, f"expected tensors of {', '.join(DTYPES)}", f"{name} of {entry['dtype']}")
        tensors[name] = _widen(np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"]))
    return tensors


def _widen(stored: npt.NDArray[Any]) -> Array:
    """Convert to float32 or wider without changing a value. The bits of a bfloat16 are the upper half of a float32."""
    if stored.dtype.kind == "u":
        return (stored.astype("<u4") << 16).view("<f4").astype(np.float32)
    return stored.astype(np.promote_types(np.float32, stored.dtype.newbyteorder("=")))
