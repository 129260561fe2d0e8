"""The folder of a PEFT checkpoint: its config and tensors, strictly validated, and written completely or not at all."""

import json
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tnadapt._errors import FormatError
from tnadapt._files.limits import MATCHED, SITES, WORD, keep, shorten
from tnadapt._files.peft_card import CARD, MARK
from tnadapt._files.peft_patterns import Patterns
from tnadapt._files.plain import read_object
from tnadapt._files.target import replace_folder
from tnadapt._files.tensors import DTYPES, TensorFile, open_tensors

__all__: list[str] = []

Array = npt.NDArray[np.floating[Any]]
CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
MOST_BYTES = 2**24  # the size limit of a config
OWN = "TNADAPT"  # the method that `tnadapt_torch.peft` registers with PEFT
LARGEST_RANK = 2**31 - 1  # as of any size
LARGEST_ALPHA = 1.7e308  # a larger integer is no float


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
        {
            "lora_A.weight": "A",
            "lora_B.weight": "B",
            "lora_magnitude_vector": "magnitude",
            "lora_magnitude_vector.weight": "magnitude",
        },
        HARMLESS + "alpha_pattern eva_config fan_in_fan_out init_lora_weights lora_alpha lora_dropout megatron_core "
        "qalora_group_size rank_pattern runtime_config use_dora use_rslora",
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
    "lora_B.bias": "lora_bias",
    "hada_t1": "a convolution",
    "hada_t2": "a convolution",
    "lokr_t2": "a convolution",
}
AXES = 2  # of a factor
LONGEST_NUMBER = 10
STARTS = (None, True, False, "gaussian", "orthogonal", "eva")  # these do not change the host's weights


@dataclass(frozen=True)
class Stored:
    """An array of a checkpoint whose shape is known, and that is read or made when it is needed."""

    shape: tuple[int, ...]
    read: Callable[[], Array]


@dataclass(frozen=True)
class Folder:
    """The content of a checkpoint: the factors of each module by its path, shared factors, fully trained modules.

    No tensor is read before one of them is asked for. `numbers` is how many they have together.
    """

    path: Path
    method: str
    config: Mapping[str, Any]
    modules: Mapping[str, Mapping[str, Stored]]
    shared: Mapping[str, Stored]
    extra: Mapping[str, Stored]
    numbers: int

    def fault(self, rule: str, came: str, todo: str = "") -> FormatError:
        """Return an error about this folder: what was expected, what came, and what to do."""
        return fault_of(self.path, rule, came, todo)

    def matrix(self, module: str, name: str) -> Stored:
        """Return a factor of a module. Raises FormatError if it is missing or is not a matrix."""
        if name not in self.modules[module]:
            raise self.fault(f"{module}: expected a factor {name}", "none")
        value = self.modules[module][name]
        if len(value.shape) != AXES:
            raise self.fault(f"{module}: expected a matrix {name}, as of a linear layer", f"shape {value.shape}")
        return value

    def rank(self, module: str) -> int:
        """Return the rank of a module from the options r and rank_pattern. Raises FormatError for an invalid rank."""
        value = self._patterns["rank_pattern"].value(module, self.config.get("r"))
        if type(value) is not int or not 1 <= value <= LARGEST_RANK:
            raise self.fault(f"{module}: expected an integer of at least 1 as its rank", reprlib.repr(value))
        return value

    def alpha(self, module: str, key: str) -> float:
        """Return the alpha of a module from this option and alpha_pattern. Raises FormatError for an invalid alpha."""
        value = self._patterns["alpha_pattern"].value(module, self.config.get(key))
        if type(value) not in (int, float) or not -LARGEST_ALPHA <= value <= LARGEST_ALPHA:
            raise self.fault(f"{module}: expected a finite number as its alpha", reprlib.repr(value))
        return float(value)

    @cached_property
    def _patterns(self) -> dict[str, Patterns]:
        found = {}
        for table in ("rank_pattern", "alpha_pattern"):
            patterns = self.config.get(table) or {}
            if not isinstance(patterns, dict):
                raise self.fault(f"{table}: expected a mapping from patterns to numbers", reprlib.repr(patterns))
            found[table] = Patterns(f"{self.path}: {table}", patterns)
        return found


def fault_of(path: Path, rule: str, came: str, todo: str = "") -> FormatError:
    """Return an error about a folder: what was expected, what came, and what to do."""
    return FormatError(f"{path}: {rule}, got {came}.{todo and chr(10)}{todo}")


@contextmanager
def open_folder(directory: Path) -> Iterator[Folder]:
    """Read the config and the header of a checkpoint and assign each tensor to its module, without running code.

    Raises FormatError for a pickle, a damaged file, a method or an option that is not supported, or a tensor that does
    not belong to the method. Raises FileNotFoundError if there is no checkpoint.
    """
    config = _config_of(directory)
    name = config.get("peft_type")
    if not isinstance(name, str) or name not in METHODS:
        todo = "Import tnadapt_torch.peft, then load it with PeftModel.from_pretrained." if name == OWN else ""
        raise fault_of(directory, f"expected one of {', '.join(METHODS)} as peft_type", reprlib.repr(name), todo)
    method = METHODS[name]
    _check_options(directory, config, method.options.split())
    path = directory / TENSORS
    if not path.is_file() and (directory / PICKLE).exists():
        todo = "If you trust it, load it with PEFT and save it again with save_pretrained."
        raise fault_of(directory, f"expected tensors in {TENSORS}", f"only the pickle {PICKLE}", todo)
    with open_tensors(path, f"{directory}: {TENSORS}") as file:
        yield _assigned(directory, method, config, file)


def _assigned(directory: Path, method: Method, config: Mapping[str, Any], file: TensorFile) -> Folder:
    """Assign every tensor to its module by its name."""
    name = str(config["peft_type"])
    values = _Values(directory, file)
    modules: dict[str, dict[str, Stored]] = {}
    shared: dict[str, Stored] = {}
    extra: dict[str, Stored] = {}
    listed = config.get("modules_to_save")
    saved = [f".{word}." for word in listed if isinstance(word, str)] if isinstance(listed, list) else []
    compared = 0
    for key in sorted(file.entries, key=_words):
        entry, inner = file.entries[key], key.removeprefix(PREFIX)
        if entry.dtype not in DTYPES:
            raise fault_of(directory, f"expected tensors of {', '.join(DTYPES)}", f"{shorten(key)} of {entry.dtype}")
        value = Stored(entry.shape, partial(values.factor, key))
        end = next((end for end in method.factors if inner.endswith(f".{end}")), None)
        if key.removeprefix("base_model.") in method.shared:
            shared[key.removeprefix("base_model.")] = value
        elif key.startswith(PREFIX) and end is not None:
            modules.setdefault(inner.removesuffix(f".{end}"), {})[method.factors[end]] = value
            keep(directory, "modules", len(modules), SITES)
        else:
            compared += len(saved)
            keep(directory, "comparisons of names with modules_to_save", compared, MATCHED)
            if key.startswith(PREFIX) and any(word in f".{inner.rpartition('.')[0]}." for word in saved):
                extra[inner] = Stored(entry.shape, partial(values.read, key))
                continue
            odd = next((what for end, what in STRANGERS.items() if inner.endswith(f".{end}")), "none of its factors")
            came = f"{shorten(key)}, which is {odd}"
            raise fault_of(directory, f"expected a checkpoint with factors of {name} alone", came)
    if long := [path for path in modules if len(path) > WORD]:
        raise fault_of(directory, f"expected paths of at most {WORD} characters", f"{long[0][:100]!r}...")
    if not modules:
        raise fault_of(directory, f"expected a checkpoint with factors of {name} for at least one module", "none")
    return Folder(directory, name, config, modules, shared, extra, file.numbers)


class _Values:
    """The tensors of a file, which are all read when one of them is asked for first."""

    def __init__(self, directory: Path, file: TensorFile) -> None:
        self.directory, self.file = directory, file

    @cached_property
    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        return self.file.read()

    def read(self, key: str) -> Array:
        """Return a tensor; a buffer of a trained module may be infinite."""
        return _widen(self.tensors[key])

    def factor(self, key: str) -> Array:
        """Return a factor. Raises FormatError if it is not finite."""
        value = self.read(key)
        if not np.isfinite(value).all():
            todo = "The run that wrote it has probably diverged. Take an earlier checkpoint."
            raise fault_of(self.directory, f"expected finite numbers in {shorten(key)}", "NaN or infinity", todo)
        return value


def write_folder(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Array], card: str) -> None:
    """Write the files of a checkpoint, or none; an earlier checkpoint in the folder is replaced.

    A card beside it that the user changed, so that it lacks the mark of ours, stays.
    Raises FormatError for a folder that holds anything else, or that cannot be written.
    """
    text = json.dumps(dict(sorted(config.items())), indent=2, allow_nan=False)
    old = directory / CARD
    try:
        is_known = (directory / CONFIG).exists() or not old.exists()  # a card alone is not a checkpoint of ours
    except OSError:  # as of a name that is too long, which replace_folder refuses
        is_known = True

    def fill(folder: Path) -> None:
        (folder / CONFIG).write_text(text)
        try:
            save_file(dict(tensors), folder / TENSORS, metadata={"format": "pt"})
        except SafetensorError as error:  # as of a full disk
            raise OSError(str(error)) from None
        kept = old.read_bytes() if old.is_file() else b""
        is_changed = bool(kept) and MARK.encode() not in kept
        (folder / CARD).write_bytes(kept if is_changed else card.encode())

    replace_folder(directory, (CONFIG, TENSORS, CARD) if is_known else (CONFIG, TENSORS), fill)


def _config_of(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    if not path.is_file():
        if directory.is_file():
            todo = "Read a file of tnadapt with load."
            raise FileNotFoundError(f"{directory}: expected a folder with {CONFIG}, got a file.\n{todo}")
        own = next(directory.glob("tnadapt_*.safetensors"), None)
        todo = f"It is a folder of tnadapt: read {own} with load." if own else "Check the path."
        raise FileNotFoundError(f"{directory}: expected a folder with {CONFIG}, got none.\n{todo}")
    return read_object(path, MOST_BYTES)


def _check_options(directory: Path, config: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise FormatError for an option that is set and may change what the tensors mean."""
    for key, value in config.items():
        if key not in known and value not in (None, False, 0, "", [], {}):
            raise fault_of(directory, "expected a plain checkpoint", f"the option {key[:WORD]}={reprlib.repr(value)}")
    if config.get("bias") not in (None, "none"):
        raise fault_of(
            directory, "expected updates of weights alone", f"the option bias={reprlib.repr(config['bias'])}"
        )
    start = config.get("init_lora_weights")
    if not any(start is one or (isinstance(one, str) and start == one) for one in STARTS):
        raise fault_of(
            directory,
            "expected an update that is added to the model's own weights",
            f"the start init_lora_weights={reprlib.repr(start)}, which changes them or is not known",
            "Let PEFT convert it to an ordinary LoRA: save_pretrained(path_initial_model_for_weight_conversion=...).",
        )


def _words(key: str) -> list[tuple[int, str]]:
    """Return the sort key of a name: its parts, with numbers by size. The order in the file has no meaning."""
    return [(int(word) if word.isdecimal() and len(word) < LONGEST_NUMBER else -1, word) for word in key.split(".")]


def _widen(stored: npt.NDArray[Any]) -> Array:
    """Convert to float32 or wider without changing a value. The bits of a bfloat16 are the upper half of a float32."""
    if stored.dtype.kind == "u":
        return (stored.astype("<u4") << 16).view("<f4").astype(np.float32)
    return stored.astype(np.promote_types(np.float32, stored.dtype.newbyteorder("=")))
