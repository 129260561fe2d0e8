"""The folder of a PEFT checkpoint: a config and its tensors, read with every doubt, written whole or not at all."""

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
MOST_BYTES = 2**24  # of a config
DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}


@dataclass(frozen=True)
class Method:
    """How PEFT stores a method: the ends of its tensors' names, and which of its options are read.

    `factors` maps the end of a name to a word for it; `shared` are whole names behind "base_model.". `options` either
    are read or say nothing about what the tensors mean.
    """

    factors: Mapping[str, str]
    options: str
    shared: tuple[str, ...] = ()


HARMLESS = (
    "auto_mapping base_model_name_or_path bias exclude_modules inference_mode init_weights layers_pattern "
    "layers_to_transform modules_to_save peft_type peft_version r revision target_modules task_type "
)
OF_LYCORIS = "alpha alpha_pattern module_dropout rank_dropout rank_pattern use_effective_conv2d "
# fan_in_fan_out says how the host stores its weight; A is (r, in) and B (out, r) either way.
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
STRANGERS = {  # ends of names that tell what is not read here
    "lora_embedding_A": "an embedding",
    "lora_embedding_B": "an embedding",
    "lora_magnitude_vector.weight": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_B.bias": "lora_bias",
    "hada_t1": "a convolution",
    "hada_t2": "a convolution",
    "lokr_t2": "a convolution",
}
AXES = 2  # of what is read
PATTERN = re.compile(r"[\w.\-\\^$|()*+\[\]]{1,500}")  # no braces, no question marks
MOST_REPEATS, MOST_GROUPS = 2, 4
LONGEST_PATH, LONGEST_NUMBER = 500, 10
STARTS = (None, True, False, "gaussian", "orthogonal", "eva")  # these leave the host's weights alone


@dataclass(frozen=True)
class Folder:
    """What a checkpoint holds, sorted: the factors of each module by its path, shared ones, modules trained whole."""

    path: Path
    method: str
    config: Mapping[str, Any]
    modules: Mapping[str, Mapping[str, Array]]
    shared: Mapping[str, Array]
    extra: Mapping[str, Array]

    def fault(self, rule: str, came: str, todo: str = "") -> FormatError:
        """The error of this folder, to be raised."""
        return fault_of(self.path, rule, came, todo)

    def matrix(self, module: str, name: str) -> Array:
        """A factor of a module. Raises FormatError where it is missing, or of more axes than a linear layer's."""
        if name not in self.modules[module]:
            raise self.fault(f"{module}: every module has all its factors", f"{name} is missing")
        value = self.modules[module][name]
        if value.ndim != AXES:
            raise self.fault(f"{module}: {name} is a matrix, as of a linear layer", f"its shape is {value.shape}")
        return value

    def rank(self, module: str) -> int:
        """The rank of a module, by the options r and rank_pattern. Raises FormatError for what is none."""
        value = self._option(module, "r", "rank_pattern")
        if type(value) is not int or value < 1:
            raise self.fault(f"{module}: its rank is an integer of at least 1", f"it is {value!r}")
        return value

    def alpha(self, module: str, key: str) -> float:
        """The alpha of a module, by that option and alpha_pattern. Raises FormatError for what is none."""
        value = self._option(module, key, "alpha_pattern")
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.fault(f"{module}: its alpha is a finite number", f"it is {value!r}")
        return float(value)

    def _option(self, module: str, key: str, table: str) -> Any:
        """What the first pattern that matches a module says, or else the option for all."""
        patterns = self.config.get(table) or {}
        if not isinstance(patterns, dict):
            raise self.fault(f"{table} maps patterns to numbers", f"it is {patterns!r}")
        for pattern, value in patterns.items():
            self._check_pattern(table, pattern)
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return value
            except re.error as error:
                raise self.fault(f"{table} holds names and regular expressions", f"{pattern!r}: {error}") from None
        return self.config.get(key)

    def _check_pattern(self, table: str, pattern: str) -> None:
        """Raises FormatError for an expression on which a search could take for ever."""
        repeats, groups = sum(map(pattern.count, "*+")), pattern.count("(")
        if (
            not PATTERN.fullmatch(pattern)
            or repeats > MOST_REPEATS
            or groups > MOST_GROUPS
            or re.search(r"\)[*+]", pattern)
        ):
            raise self.fault(
                f"{table} is read where its expressions have at most {MOST_REPEATS} repeats and {MOST_GROUPS} groups",
                f"one is {pattern[:100]!r}",
            )


def fault_of(path: Path, rule: str, came: str, todo: str = "") -> FormatError:
    """The error of a folder, to be raised."""
    return FormatError(f"{path}: {rule}.\nHowever, {came}.{todo and chr(10)}{todo}")


def open_folder(directory: Path) -> Folder:
    """Everything in a checkpoint, each tensor in its place. No code is run.

    Raises FormatError for a pickle, a damaged file, a method or an option that is not read, or a tensor that is not
    the method's; FileNotFoundError where there is no checkpoint.
    """
    config = _config_of(directory)
    name = config.get("peft_type")
    if not isinstance(name, str) or name not in METHODS:
        raise fault_of(directory, f"peft_type must be one of {', '.join(METHODS)}", f"it is {name!r}")
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
            raise fault_of(directory, f"a checkpoint of {name} is read with its factors alone", f"{key} is {odd}")
    if long := [path for path in modules if len(path) > LONGEST_PATH]:
        raise fault_of(directory, f"a path has at most {LONGEST_PATH} letters", f"one is {long[0][:100]!r}...")
    if not modules:
        raise fault_of(directory, f"a checkpoint of {name} has factors for at least one module", "this has none")
    return Folder(directory, name, config, modules, shared, extra)


def write_folder(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Array]) -> None:
    """Write both files of a checkpoint to a neighbour of the folder, then rename that.

    An earlier checkpoint in the folder is replaced. Raises FormatError for a folder that holds anything else.
    """
    directory = directory.absolute()
    if directory.exists() and not directory.is_dir():
        raise fault_of(directory, "a checkpoint is a folder", "this is a file", "Nothing was written.")
    held = {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()
    if other := sorted(held - {CONFIG, TENSORS}):
        todo = "Name a new folder. Nothing was written."
        raise fault_of(directory, "a checkpoint is written as a whole folder", f"this one holds {other[0]}", todo)
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
        raise fault_of(directory, f"{CONFIG} has at most {MOST_BYTES:,} bytes", "it has more")
    try:
        return parse(content.decode())
    except (FormatError, UnicodeDecodeError) as error:
        raise fault_of(directory, f"{CONFIG} is one JSON object", f"it is {error}") from None


def _check_options(directory: Path, config: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises FormatError for an option that is set, and is not known to leave the meaning of the tensors alone."""
    for key, value in config.items():
        if key not in known and value not in (None, False, 0, "", [], {}):
            raise fault_of(directory, "only plain checkpoints are read", f"its option {key} is {value!r}")
    if config.get("bias") not in (None, "none"):
        raise fault_of(directory, "only updates of weights are read", f"its option bias is {config['bias']!r}")
    start = config.get("init_lora_weights")
    if not any(start is one or (isinstance(one, str) and start == one) for one in STARTS):
        raise fault_of(
            directory,
            "the update is read as an addition to the model's own weights",
            f"its start init_lora_weights={start!r} changed them, or is not known",
            "Let PEFT convert it to an ordinary LoRA: save_pretrained(path_initial_model_for_weight_conversion=...).",
        )


def _words(key: str) -> list[tuple[int, str]]:
    """What sorts names by their words, and numbers among these by their size; the file's own order is none."""
    return [(int(word) if word.isdecimal() and len(word) < LONGEST_NUMBER else -1, word) for word in key.split(".")]


def _is_saved(key: str, names: object) -> bool:
    """Whether a tensor belongs to one of the modules that were trained whole."""
    owner = key.rpartition(".")[0]
    return isinstance(names, list) and any(isinstance(name, str) and f".{name}." in f".{owner}." for name in names)


def _tensors_of(directory: Path) -> dict[str, Array]:
    path = directory / TENSORS
    if not path.is_file():
        if (directory / PICKLE).exists():
            todo = "Load it with PEFT where you trust it, and save it again with save_pretrained."
            raise fault_of(directory, f"tensors are read from {TENSORS}", f"there is only the pickle {PICKLE}", todo)
        raise FileNotFoundError(path)
    try:
        entries = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]  # typed nowhere
    except SafetensorError as error:
        raise fault_of(directory, f"{TENSORS} is a whole safetensors file", f"it is not: {error}") from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in DTYPES:
            raise fault_of(directory, f"tensors are of {', '.join(DTYPES)}", f"{name} is of {entry['dtype']}")
        tensors[name] = _widen(np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"]))
    return tensors


def _widen(stored: npt.NDArray[Any]) -> Array:
    """Float32 or better, no value changed. A bfloat16, which comes as its bits, is the upper half of a float32."""
    if stored.dtype.kind == "u":
        return (stored.astype("<u4") << 16).view("<f4").astype(np.float32)
    return stored.astype(np.promote_types(np.float32, stored.dtype.newbyteorder("=")))
