"""The PEFT config of a tnadapt adapter, as passed to PEFT and as stored in adapter_config.json."""

import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import peft
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from tnadapt import Adapter, AdapterSpec, FormatError, SiteError, from_json, to_json
from tnadapt.binding import SpecLike, digests, spec_of, told

__all__ = ["TnConfig"]

TESTED = ("0.21.2",)
PREFIX = "tnadapt_"
STATES = "tnadapt_states"  # the attribute in which the tuner holds the states of its adapters
STEM = f"base_model.{STATES}."  # the prefix of a factor's key in adapter_model.safetensors


def check_release(release: str) -> None:
    """Raise ImportError unless tnadapt was tested with this release of PEFT."""
    if release in TESTED:
        return
    raise ImportError(
        f"tnadapt_torch.peft: expected a tested release of peft ({', '.join(TESTED)}), got peft {release}.\n"
        f"PEFT changes between releases. Install peft=={TESTED[-1]}, or use tnadapt_torch.attach."
    )


check_release(peft.__version__)


class PeftType(str, Enum):  # noqa: UP042  (PEFT expects the str() of a plain enum)
    """The name of this method in PEFT's tables; PEFT's own enum cannot be extended."""

    TNADAPT = "TNADAPT"


@dataclass
class TnConfig(peft.PeftConfig):  # type: ignore[misc]
    """The PEFT config of a tensor-network adapter.

    Args:
        spec: the adapter's spec, a family, or the name of a family, such as "lotr".
        rank: the size of every bond, or a mapping from bond to size.
        alpha: replaces the alpha of the spec's scale.
        sizes: a mapping from mode to size, such as {"head": 12}.
        seed: the seed of the starting values.
        dropout: the dropout probability on the adapter's input during training.
        target_modules: as in PEFT: names or suffixes, a regular expression, "all-linear", or None for the default LoRA
            targets of PEFT for this model type.
        exclude_modules: modules not to adapt, in the same forms as target_modules.
        layers_to_transform: adapt only the layers with these indices.
        layers_pattern: the name of the list of layers, if PEFT cannot infer it.
        modules_to_save: names of modules that are trained in full and saved with the adapter.
        adapter: only in a file, in place of spec, rank, alpha, sizes and seed: the saved adapter as JSON.
        digests: only in a file: the SHA-256 of each frozen factor that is drawn again at load.

    Raises:
        SiteError: there is no spec, or dropout is not a probability below 1.
        FormatError: a JSON text does not describe an adapter or a spec.
    """

    spec: SpecLike | None = None
    rank: int | Mapping[str, int] | None = None
    alpha: float | None = None
    sizes: Mapping[str, int] | None = None
    seed: int = 0
    dropout: float = 0.0
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    adapter: str | None = None
    digests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Parse the JSON texts of a file and check the fields."""
        super().__post_init__()
        self.peft_type = PeftType.TNADAPT
        self._loaded: Adapter | None = None
        self._sealed: dict[str, Any] = {}
        if self.adapter is not None:
            self._take(self.adapter)
        if inspect.isfunction(self.spec) or (isinstance(self.spec, str) and self.spec.isidentifier()):
            self.spec = spec_of(self.spec, "TnConfig")
        if isinstance(self.spec, str):
            self.spec = from_json(self.spec)  # type: ignore[assignment]  # the next line checks it
        if not isinstance(self.spec, AdapterSpec):
            raise SiteError(
                f"TnConfig: expected an AdapterSpec as spec, got {self.spec!r}.\nPass one such as families.lora()."
            )
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise SiteError(f"dropout: expected a number of at least 0 and below 1, got {self.dropout!r}.")
        for name in ("target_modules", "exclude_modules"):
            if isinstance(rule := getattr(self, name), list):
                setattr(self, name, set(rule))

    def _take(self, text: str) -> None:
        """Set the fields from a saved adapter."""
        loaded = from_json(text)
        if self.spec is not None or not isinstance(loaded, Adapter):
            given = (
                "a spec as well.\nLeave spec out." if self.spec is not None else "the text of a spec.\nPass it as spec."
            )
            raise FormatError(f"adapter: expected the text of an adapter and no spec, got {given}")
        self._loaded, self.spec, self.alpha = loaded, loaded.spec, None
        self.rank, self.sizes, self.seed = loaded.rank, loaded.sizes, loaded.seed

    def check(self, adapter: Adapter) -> None:
        """Raise FormatError unless an adapter bound to a model equals the saved one, if the config has a saved one.

        The message names the first site that differs, or the first frozen factor that is drawn with other values here.
        """
        if self._loaded is None:
            return
        if adapter != self._loaded:
            here, saved = ({site.path: site for site in each.sites} for each in (adapter, self._loaded))
            odd = [path for path in {**saved, **here} if here.get(path) != saved.get(path)]
            raise FormatError(
                f"adapter_config.json: expected a model with the {len(saved)} sites that the adapter was saved with, "
                f"got one with {len(here)} sites.\n"
                f"The first difference is {odd[0] if odd else 'the order of the sites'}: "
                f"saved {_shape(saved, odd)}, here {_shape(here, odd)}."
            )
        if (drawn := digests(adapter)) != self.digests:
            odd = [name for name in {**drawn, **self.digests} if drawn.get(name) != self.digests.get(name)]
            raise FormatError(
                f"adapter_config.json: expected the stored digest of {odd[0]}, "
                f"got another digest when it was drawn again from seed {adapter.seed}."
            )

    def seal(self, adapter: Adapter) -> None:
        """Store this adapter for the next adapter_config.json that is saved."""
        asked = dict.fromkeys(("spec", "rank", "alpha", "sizes"))
        self._sealed = asked | {"seed": 0, "adapter": to_json(adapter), "digests": digests(adapter)}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data, as adapter_config.json stores them."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        plain["spec"] = to_json(self.spec)  # type: ignore[arg-type]  # __post_init__ made it a spec
        if self._loaded is not None:
            plain |= dict.fromkeys(("spec", "rank", "alpha", "sizes"))
        plain |= {name: dict(value) for name, value in plain.items() if isinstance(value, Mapping)}
        plain |= {
            name: sorted(value) for name, value in plain.items() if isinstance(value, set)
        }  # so that equal configs give equal files
        return plain | self._sealed

    @classmethod
    def from_json_file(cls, path_json_file: str | os.PathLike[str]) -> dict[str, Any]:
        """Read adapter_config.json, and check it and the file of factors in the same folder.

        Raises:
            FormatError: a key is unknown, a value has the wrong type, or the file of factors is pickled, truncated, or
                does not belong to this adapter.
        """
        path = Path(path_json_file)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path}: expected a JSON text, got invalid JSON: {error}") from None
        if not isinstance(data, dict) or data.get("peft_type") != PeftType.TNADAPT.value:
            found = data.get("peft_type") if isinstance(data, dict) else data
            raise FormatError(f"{path}: expected peft_type {PeftType.TNADAPT.value!r}, got {told(found)}.")
        if unknown := data.keys() - {each.name for each in fields(cls)}:
            raise FormatError(
                f"{path}: expected the keys of this release, got the unknown keys {sorted(unknown)}.\n"
                "Was it saved by a newer release?"
            )
        for name, value in data.items():
            if not isinstance(value, KINDS.get(name, (str, type(None)))) or (isinstance(value, bool) and name != FLAG):
                raise FormatError(f"{path}: expected another type of value for {name}, got {type(value).__name__}.")
        if data.get("adapter") is not None:
            _check_factors(path.parent, from_json(data["adapter"]))
        return data


FLAG = "inference_mode"
KINDS: dict[str, tuple[type, ...]] = {
    FLAG: (bool,),
    "auto_mapping": (dict, type(None)),
    "rank": (int, dict, type(None)),
    "alpha": (int, float, type(None)),
    "sizes": (dict, type(None)),
    "seed": (int,),
    "dropout": (int, float),
    "target_modules": (list, str, type(None)),
    "exclude_modules": (list, str, type(None)),
    "layers_to_transform": (list, int, type(None)),
    "layers_pattern": (list, str, type(None)),
    "modules_to_save": (list, type(None)),
    "digests": (dict,),
}


def _check_factors(folder: Path, adapter: AdapterSpec | Adapter) -> None:
    """Check the header of the file of factors, if the file exists (a hub may not have sent it yet)."""
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.exists():
        if (pickled := folder / WEIGHTS_NAME).exists():
            raise FormatError(
                f"{pickled}: expected a safetensors file, got a pickle, which can run code when it is read.\n"
                "Save it as safetensors."
            )
        return
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  (no dict)
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"{path}: expected a whole safetensors file, got a truncated or damaged one: {error}"
        ) from None
    if isinstance(adapter, Adapter):
        check_factors(str(path), adapter, {key: shape for key, shape in shapes.items() if key.startswith(STEM)})


def check_factors(where: str, adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise FormatError unless the tensors with these keys and shapes are the factors of the adapter."""
    wanted = {f"{STEM}{name}": slot for name, slot in adapter.slots.items()}
    missing = [key for key, slot in wanted.items() if slot.is_stored and key not in shapes]
    if odd := [*missing, *sorted(shapes.keys() - wanted.keys())]:
        given = f"none named {odd[0]}" if missing else f"{odd[0]}, which is not one of them"
        raise FormatError(f"{where}: expected the factors of this adapter, got {given}.\nNothing was loaded.")
    for key, shape in shapes.items():
        if shape != wanted[key].shape:
            raise FormatError(
                f"{where}: expected {key} with shape {wanted[key].shape}, got {shape}.\nNothing was loaded."
            )


def _shape(sites: Mapping[str, Any], odd: list[str]) -> str:
    site = sites.get(odd[0]) if odd else None
    return "none" if site is None else f"{site.shape} at {dict(site.coordinates)}"
