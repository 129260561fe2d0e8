"""The PEFT config of a tnadapt adapter, as passed to PEFT and as stored in adapter_config.json."""

import inspect
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, cast

import peft

from tnadapt import Adapter, AdapterSpec, FormatError, Site, SiteError, from_json, to_json
from tnadapt.binding import (
    SpecLike,
    answers,
    as_integer,
    as_number,
    digests,
    expect_names,
    mistake,
    read_object,
    spec_of,
    told,
)
from tnadapt.initializers import Scale
from tnadapt_torch.peft._checkpoint import LARGEST_SEED, STATES, check_folder

__all__ = ["TnConfig"]

SERIES = "0.21"  # `make matrix` tests its releases; 0.20 does not ask a tuner for the factors that its layers share
PREFIX = STATES  # what PEFT looks for in the keys of factors; those of `attach` must not have it


def check_release(release: str) -> None:
    """Raise ImportError unless this release of PEFT is one of the series that tnadapt is tested with."""
    if release.split(".")[:2] == SERIES.split("."):
        return
    raise ImportError(
        f"tnadapt_torch.peft: expected a release {SERIES}.x of peft, got peft {release}.\n"
        f"This package builds on PEFT's tuner classes, which change between series. "
        f'Run pip install "peft=={SERIES}.*", or use tnadapt_torch.attach.'
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
        alpha: replaces the alpha of the scale: alpha=16 with scale=unit() is unit(16).
        sizes: a mapping from mode to size, such as {"head": 12}.
        seed: the seed of the starting values. By default it is drawn from torch's generator when the adapter is made,
            so that `torch.manual_seed` determines it. If there are several processes, it is 0 by default, since all of
            them must draw the same values.
        dropout: the dropout probability on the adapter's input during training.
        target_modules: as in PEFT: names or suffixes, a regular expression, "all-linear", or None for the default LoRA
            targets of PEFT for this model type.
        exclude_modules: modules not to adapt, in the same forms as target_modules.
        layers_to_transform: adapt only the layers with these indices.
        layers_pattern: the name of the list of layers, if PEFT cannot infer it.
        modules_to_save: names of modules that are trained in full and saved with the adapter.
        target_parameters: layouts of parameters that do not belong to a linear layer, as in `attach`.
        blocks: weights to split into blocks, as in `attach`.
        fused: weights that hold several projections, as in `attach`.
        tasks: names of tasks, as in `attach`; `model.base_model.states()["default"].set_task` chooses one.
        fold: add the update to the weight at each call, as in `attach`.
        overparametrized: allow a rank higher than that of any update.
        rank_pattern: name of modules -> rank, for the networks of these modules alone, as in `AdapterSpec.bind`.
        scale: replaces the spec's scale, as in scale=unit(). From then on `spec` has it, and so has the file.
        alpha_pattern: not supported, since all sites of a network have one scale; a value raises SiteError.
        adapter: only in a file, in place of spec, rank, alpha, sizes and seed: the saved adapter as JSON.
        digests: only in a file: the SHA-256 of each frozen factor that is drawn again at load.

    Raises:
        SiteError: there is no spec, or a value is not valid.
        SpecError: the scale does not fit the spec.
        FormatError: a JSON text does not describe an adapter or a spec.
    """

    spec: SpecLike | None = None
    rank: int | Mapping[str, int] | None = None
    alpha: float | None = None
    sizes: Mapping[str, int] | None = None
    seed: int | None = None
    dropout: float = 0.0
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    target_parameters: Mapping[str, str] | None = None
    blocks: Mapping[str, tuple[int, int]] | None = None
    fused: Mapping[str, Sequence[str | None] | Mapping[str, int]] | None = None
    tasks: Collection[str] = ()
    fold: bool = False
    overparametrized: bool = False
    adapter: str | None = None
    digests: dict[str, str] = field(default_factory=dict)
    rank_pattern: InitVar[Mapping[str, int] | None] = None
    alpha_pattern: InitVar[Mapping[str, float] | None] = None
    scale: InitVar[Scale | float | None] = None

    def __post_init__(self, rank_pattern: object, alpha_pattern: object, scale: object) -> None:
        """Parse the JSON texts of a file and check the fields."""
        super().__post_init__()
        self.peft_type = PeftType.TNADAPT
        self._loaded: Adapter | None = None
        self._sealed: dict[str, Any] = {}
        if alpha_pattern:
            raise mistake(SiteError, "alpha_pattern", "one alpha for all sites", told(alpha_pattern), APART)
        if self.adapter is not None:
            self._take(self.adapter, scale)
        if inspect.isfunction(self.spec) or (isinstance(self.spec, str) and self.spec.isidentifier()):
            self.spec = spec_of(self.spec, "TnConfig")
        if isinstance(self.spec, str):
            self.spec = from_json(self.spec)  # type: ignore[assignment]  # the next line checks it
        if not isinstance(self.spec, AdapterSpec):
            raise SiteError(
                f"TnConfig: expected an AdapterSpec as spec, got {self.spec!r}.\nPass one such as families.lora()."
            )
        if scale is not None:
            self.spec = replace(self.spec, scale=scale)  # type: ignore[arg-type]  # a number is raw(number)
        if rank_pattern:
            self.rank = self._ranks(rank_pattern)
        self._check_values()
        for name in ("target_modules", "exclude_modules"):
            if isinstance(rule := getattr(self, name), list):
                setattr(self, name, set(rule))

    def _ranks(self, pattern: object) -> Mapping[str, int]:
        """Return the rank of every bond, with those of some modules by name."""
        if not isinstance(pattern, Mapping):
            raise mistake(SiteError, "rank_pattern", "ranks by module", told(pattern), 'Write {"q_proj": 16}.')
        ranks = self.rank
        if not isinstance(ranks, Mapping):
            ranks = {} if ranks is None else dict.fromkeys(cast("AdapterSpec", self.spec).free_bonds, ranks)
        return {**ranks, **{str(name).removeprefix("^"): size for name, size in pattern.items()}}

    def _check_values(self) -> None:
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise SiteError(f"dropout: expected a number of at least 0 and below 1, got {self.dropout!r}.")
        self.seed = cast("int | None", as_integer(self.seed))
        self.alpha = cast("float | None", as_number(self.alpha))
        if not (self.seed is None or (type(self.seed) is int and 0 <= self.seed <= LARGEST_SEED)):
            todo = "Write seed=0, or leave it out to draw it from torch's generator."
            raise mistake(SiteError, "seed", "an integer from 0 to 2**63 - 1, or None", told(self.seed), todo)
        for word in ("fold", "overparametrized"):
            if not isinstance(getattr(self, word), bool):
                raise mistake(SiteError, word, "True or False", told(getattr(self, word)), f"Write {word}=True.")
        for word, example in MAPPINGS.items():
            if not isinstance(given := getattr(self, word), Mapping | None):
                raise mistake(SiteError, word, "a mapping from names", told(given), f"Write {word}={example}.")
        self.tasks = expect_names(self.tasks or [], "TnConfig", "tasks", SiteError)

    def _take(self, text: str, scale: object) -> None:
        """Set the fields from a saved adapter."""
        loaded = from_json(text)
        if self.spec is not None or not isinstance(loaded, Adapter):
            given = (
                "a spec as well.\nLeave spec out." if self.spec is not None else "the text of a spec.\nPass it as spec."
            )
            raise FormatError(f"adapter: expected the text of an adapter and no spec, got {given}")
        if scale is not None:
            todo = "Leave scale out, or make a new adapter."
            raise mistake(FormatError, "scale", "none beside a saved adapter, which has its own", told(scale), todo)
        self._loaded, self.spec, self.alpha = loaded, loaded.spec, None
        self.rank, self.sizes, self.seed, self.overparametrized = loaded.rank, loaded.sizes, loaded.seed, True

    @property
    def reads_weights(self) -> bool:
        """Whether starting values are read from the model's weights, or these are factors."""
        spec = cast("AdapterSpec", self.spec)
        return bool(spec.hosts) or any(factor.init.is_read for factor in spec.arrays.values())

    def bind(self, sites: Sequence[Site], seed: int) -> Adapter:
        """Bind the spec to sites. A saved adapter is taken as it was saved, with whatever rank."""
        if self._loaded is not None:
            return replace(self._loaded, sites=tuple(sites), rank=self.rank, sizes=self.sizes or {}, seed=seed)
        return cast("AdapterSpec", self.spec).bind(
            sites,
            rank=self.rank,
            sizes=self.sizes,
            alpha=self.alpha,
            seed=seed,
            overparametrized=self.overparametrized,
        )

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

    def seal(self, adapter: Adapter | None) -> None:
        """Store this adapter for the next adapter_config.json that is saved; None to forget the last one."""
        if adapter is None:
            self._sealed = {}
            return
        asked = dict.fromkeys(("spec", "rank", "alpha", "sizes"))
        self._sealed = asked | {"seed": adapter.seed, "adapter": to_json(adapter), "digests": digests(adapter)}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data, as adapter_config.json stores them."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        plain["spec"] = to_json(self.spec)  # type: ignore[arg-type]  # __post_init__ made it a spec
        if self._loaded is not None:
            plain |= dict.fromkeys(("spec", "rank", "alpha", "sizes"))
        plain |= {name: _pairs(plain[name]) for name in MAPPINGS if plain[name] is not None}
        return {name: _plain(value) for name, value in plain.items()} | self._sealed

    @classmethod
    def from_json_file(cls, path_json_file: str | os.PathLike[str]) -> dict[str, Any]:
        """Read adapter_config.json, and check it and the file of factors in the same folder.

        Raises:
            FormatError: a key is unknown, a value has the wrong type, or the file of factors is pickled, truncated, or
                does not belong to this adapter.
        """
        path = Path(path_json_file)
        data = read_object(path)
        if data.get("peft_type") != PeftType.TNADAPT.value:
            raise FormatError(
                f"{path}: expected peft_type {PeftType.TNADAPT.value!r}, got {told(data.get('peft_type'))}."
            )
        if unknown := data.keys() - {each.name for each in fields(cls)}:
            raise FormatError(
                f"{path}: expected the keys of this release, got the unknown keys {sorted(unknown)}.\n"
                "Was it saved by a newer release?"
            )
        for name, value in data.items():
            kinds = KINDS.get(name, (str, type(None)))
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise FormatError(f"{path}: expected another type of value for {name}, got {type(value).__name__}.")
        if data.get("adapter") is not None:
            check_folder(path.parent, from_json(data["adapter"]))
        return data | {name: _unpaired(path, name, data[name]) for name in MAPPINGS if data.get(name) is not None}


TnConfig.__init__ = answers(SiteError, "TnConfig")(TnConfig.__init__)  # type: ignore[method-assign]

APART = "Add a second adapter, with its own rank and alpha, for the other modules, and make both active."
MAPPINGS = {
    "target_parameters": '{"experts.gate_up_proj": "expert in out"}',
    "blocks": '{"fc1": (4, 1)}',
    "fused": '{"c_attn": ["q", "k", "v"]}',
}
NONE = type(None)
PAIR = 2
KINDS: dict[str, tuple[type, ...]] = {
    "inference_mode": (bool,),
    "auto_mapping": (dict, NONE),
    "rank": (int, dict, NONE),
    "alpha": (int, float, NONE),
    "sizes": (dict, NONE),
    "seed": (int, NONE),
    "dropout": (int, float),
    "target_modules": (list, str, NONE),
    "exclude_modules": (list, str, NONE),
    "layers_to_transform": (list, int, NONE),
    "layers_pattern": (list, str, NONE),
    "modules_to_save": (list, NONE),
    "target_parameters": (list, NONE),
    "blocks": (list, NONE),
    "fused": (list, NONE),
    "tasks": (list,),
    "fold": (bool,),
    "overparametrized": (bool,),
    "digests": (dict,),
}


def _plain(value: Any) -> Any:
    """Return a field as JSON stores it. A set is sorted, so that equal configs give equal files."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, set):
        return sorted(value)
    return [*map(_plain, value)] if isinstance(value, tuple) else as_integer(value)


def _pairs(given: Mapping[str, Any]) -> list[Any]:
    """Return a mapping as a list of pairs: its order counts, and PEFT sorts the keys of the mappings that it writes."""
    return [[name, _pairs(value) if isinstance(value, Mapping) else _plain(value)] for name, value in given.items()]


def _unpaired(path: Path, name: str, pairs: list[Any]) -> dict[str, Any]:
    """Return the mapping of a list of pairs. Raise FormatError for any other list."""
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == PAIR and isinstance(pair[0], str)):
            raise FormatError(f"{path}: expected a list of pairs for {name}, got {told(pair)} in it.")
    return {
        key: _unpaired(path, name, value) if isinstance(value, list) and value and isinstance(value[0], list) else value
        for key, value in pairs
    }


def _shape(sites: Mapping[str, Any], odd: list[str]) -> str:
    site = sites.get(odd[0]) if odd else None
    return "none" if site is None else f"{site.shape} at {dict(site.coordinates)}"
