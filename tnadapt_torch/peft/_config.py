"""What a user asks of PEFT, and what stands in adapter_config.json: a spec, or the adapter that was saved."""

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
from tnadapt.binding import SpecLike, digests, spec_of

__all__ = ["TnConfig"]

TESTED = ("0.21.2",)
PREFIX = "tnadapt_"
STATES = "tnadapt_states"  # where the tuner holds the states of its adapters
STEM = f"base_model.{STATES}."  # begins the key of a factor in adapter_model.safetensors


def check_release(release: str) -> None:
    """Raises ImportError for a release of PEFT that this is not tested with."""
    if release in TESTED:
        return
    raise ImportError(
        f"tnadapt_torch.peft: PEFT changes between releases; this is tested with {', '.join(TESTED)}.\n"
        f"However, peft {release} is installed.\nInstall peft=={TESTED[-1]}, or use tnadapt_torch.attach."
    )


check_release(peft.__version__)


class PeftType(str, Enum):  # noqa: UP042  (PEFT reads str() of it as of a plain enum's)
    """The name of this method in PEFT's tables, beside those of PEFT's own closed enum."""

    TNADAPT = "TNADAPT"


@dataclass
class TnConfig(peft.PeftConfig):  # type: ignore[misc]
    """A tensor-network adapter as PEFT's users ask for one.

    Args:
        spec: the adapter's spec; or a family, or its name, as "lotr".
        rank: the size of every bond, or bond -> size.
        alpha: replaces the alpha of the spec's scale.
        sizes: mode -> size, as {"head": 12}.
        seed: where the starting values come from.
        dropout: probability of dropping entries of the x that the adapter sees, in training.
        target_modules: as in PEFT: names or suffixes, a regular expression, "all-linear", or None for the modules that
            PEFT knows for LoRA on this kind of model.
        exclude_modules: what not to adapt, in the forms of target_modules.
        layers_to_transform: only these indices of the repeated block.
        layers_pattern: the name of the list of blocks, where that is not clear.
        modules_to_save: names of modules that are trained whole and saved along.
        adapter: in a file, instead of spec, rank, alpha, sizes and seed: the text of the adapter that was saved.
        digests: in a file: SHA-256 of each frozen factor that is drawn again at load.

    Raises:
        SiteError: no spec, or a dropout that is no probability below 1.
        FormatError: a text that is not an adapter's or a spec's.
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
        """Read the texts of a file, check."""
        super().__post_init__()
        self.peft_type = PeftType.TNADAPT
        self._loaded: Adapter | None = None
        self._sealed: dict[str, Any] = {}
        if self.adapter is not None:
            self._take(self.adapter)
        if inspect.isfunction(self.spec) or (isinstance(self.spec, str) and self.spec.isidentifier()):
            self.spec = spec_of(self.spec, "TnConfig")
        if isinstance(self.spec, str):
            self.spec = from_json(self.spec)  # type: ignore[assignment]  # the next line sees to it
        if not isinstance(self.spec, AdapterSpec):
            raise SiteError(
                f"TnConfig: spec must be an AdapterSpec, as families.lora().\nHowever, it is {self.spec!r}."
            )
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise SiteError(f"dropout: must be at least 0 and below 1, got {self.dropout!r}.")
        for name in ("target_modules", "exclude_modules"):
            if isinstance(rule := getattr(self, name), list):
                setattr(self, name, set(rule))

    def _take(self, text: str) -> None:
        """Ask for what a saved adapter is."""
        loaded = from_json(text)
        if self.spec is not None or not isinstance(loaded, Adapter):
            raise FormatError("adapter: must be the text of an adapter, and leave spec out.\nHowever, it is not so.")
        self._loaded, self.spec, self.alpha = loaded, loaded.spec, None
        self.rank, self.sizes, self.seed = loaded.rank, loaded.sizes, loaded.seed

    def check(self, adapter: Adapter) -> None:
        """Whether an adapter bound to a model's sites is the one that was saved; any is where none was.

        Raises FormatError naming the first site that differs, or a frozen factor that is drawn otherwise here.
        """
        if self._loaded is None:
            return
        if adapter != self._loaded:
            here, saved = ({site.path: site for site in each.sites} for each in (adapter, self._loaded))
            odd = [path for path in {**saved, **here} if here.get(path) != saved.get(path)]
            raise FormatError(
                f"adapter_config.json: was saved from a model with {len(saved)} sites of this adapter.\n"
                f"However, this model has {len(here)}; the first at odds is {odd[0] if odd else 'their order'}: "
                f"saved {_shape(saved, odd)}, here {_shape(here, odd)}."
            )
        if (drawn := digests(adapter)) != self.digests:
            odd = [name for name in {**drawn, **self.digests} if drawn.get(name) != self.digests.get(name)]
            raise FormatError(
                f"adapter_config.json: {odd[0]} was drawn again from seed {adapter.seed}, but has another digest."
            )

    def seal(self, adapter: Adapter) -> None:
        """Have the next saved adapter_config.json hold this adapter."""
        asked = dict.fromkeys(("spec", "rank", "alpha", "sizes"))
        self._sealed = asked | {"seed": 0, "adapter": to_json(adapter), "digests": digests(adapter)}

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data: what adapter_config.json holds."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        plain["spec"] = to_json(self.spec)  # type: ignore[arg-type]  # a spec since it was made
        if self._loaded is not None:
            plain |= dict.fromkeys(("spec", "rank", "alpha", "sizes"))
        plain |= {name: dict(value) for name, value in plain.items() if isinstance(value, Mapping)}
        plain |= {name: sorted(value) for name, value in plain.items() if isinstance(value, set)}  # equal files
        return plain | self._sealed

    @classmethod
    def from_json_file(cls, path_json_file: str | os.PathLike[str]) -> dict[str, Any]:
        """What adapter_config.json holds, once it and the file beside it were checked.

        Raises FormatError for unknown keys, values of wrong types, and a file of factors that is pickled, cut short, or
        not of this adapter.
        """
        path = Path(path_json_file)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path}: not a JSON text: {error}") from None
        if not isinstance(data, dict) or data.get("peft_type") != PeftType.TNADAPT.value:
            raise FormatError(f"{path}: not of peft_type {PeftType.TNADAPT.value}.")
        if unknown := data.keys() - {each.name for each in fields(cls)}:
            raise FormatError(f"{path}: unknown keys {sorted(unknown)}.\nWas it saved by a newer release?")
        for name, value in data.items():
            if not isinstance(value, KINDS.get(name, (str, type(None)))) or (isinstance(value, bool) and name != FLAG):
                raise FormatError(f"{path}: {name} has a value of the wrong type, {type(value).__name__}.")
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
    """Look at the header of the file of factors, if it lies there (a hub may not have sent it yet)."""
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.exists():
        if (pickled := folder / WEIGHTS_NAME).exists():
            raise FormatError(f"{pickled}: is a pickle, which can run code when it is read.\nSave it as safetensors.")
        return
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  (no dict)
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path}: was cut short or damaged: {error}") from None
    if isinstance(adapter, Adapter):
        check_factors(str(path), adapter, {key: shape for key, shape in shapes.items() if key.startswith(STEM)})


def check_factors(where: str, adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises FormatError where tensors, by their keys in a file, are not the factors of an adapter."""
    wanted = {f"{STEM}{name}": slot for name, slot in adapter.slots.items()}
    missing = [key for key, slot in wanted.items() if slot.is_stored and key not in shapes]
    if odd := [*missing, *sorted(shapes.keys() - wanted.keys())]:
        what = "is missing" if missing else "is none of this adapter's"
        raise FormatError(f"{where}: {odd[0]} {what}.\nNothing was loaded.")
    for key, shape in shapes.items():
        if shape != wanted[key].shape:
            raise FormatError(
                f"{where}: {key} must have shape {wanted[key].shape}.\nHowever, it has {shape}.\nNothing was loaded."
            )


def _shape(sites: Mapping[str, Any], odd: list[str]) -> str:
    site = sites.get(odd[0]) if odd else None
    return "none" if site is None else f"{site.shape} at {dict(site.coordinates)}"
