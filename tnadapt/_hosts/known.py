"""Hosts without their weights: the sites of a well-known model, or of any whose Hugging Face config.json is there."""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from tnadapt._errors import FormatError, SiteError
from tnadapt._frozen import FrozenMap
from tnadapt._hosts.configs import CONFIGS, LAYOUTS, Layout
from tnadapt._hosts.paths import Rule, match, nearest, places_of
from tnadapt._hosts.site import LARGEST, Site, check_size
from tnadapt._signature import mistake, told

__all__ = ["Host", "find_host"]

ALL_LINEAR = "all-linear"
MOST_LAYERS = 10_000
MOST_BYTES = 2**24  # of a config.json: one that names 20,000 classes stays under a tenth of it
REMEDY = "Give the config.json that the model was saved with."
BY_HAND = "Make each site by hand, as a Site."


@dataclass(frozen=True, kw_only=True)
class Host:
    """The linear layers in the blocks of a transformer; what lies outside of the blocks (pooler, head) is left out.

    Args:
        name: how it is called in a table.
        layers: the number of blocks.
        heads: attention heads; `sizes={"head": host.heads}` splits an axis by them.
        key_heads: heads of the keys and values; fewer than `heads` where several queries share one.
        head_size: length of one head; the weights of queries, keys and values are whole heads.
        prefix: path of the bare model inside of the model that is loaded: "roberta" in a RobertaForMaskedLM, "" in a
            RobertaModel. `dataclasses.replace(host, prefix="")` gives the other one.
        blocks: path of the list of blocks inside of the bare model.
        kinds: name of a linear layer inside of its block -> (out, in) of its weight, in the order of the model.
        targets: the kinds that are adapted where none are named: query and value, or what holds both of them.

    Raises:
        SiteError: a size that is none, more than 10,000 layers, key heads that do not divide the heads, or a number as
            a word of a path, which would pass for the block's.
    """

    name: str
    layers: int
    heads: int
    key_heads: int
    head_size: int
    prefix: str
    blocks: str
    kinds: Mapping[str, tuple[int, int]]
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check every size and path, freeze."""
        for what in ("layers", "heads", "key_heads", "head_size"):
            check_size(f"{self.name}: {what}", getattr(self, what))
        for kind, shape in self.kinds.items():
            for size in shape:
                check_size(f"{self.name}: an axis of {kind}", size)
        if self.layers > MOST_LAYERS:
            raise SiteError(
                f"{self.name}: a host has at most {MOST_LAYERS:,} layers.\nHowever, this one has {self.layers:,}."
            )
        if self.heads % self.key_heads:
            raise SiteError(
                f"{self.name}: every head of keys serves as many heads of queries.\n"
                f"However, {self.key_heads:,} does not divide {self.heads:,}."
            )
        above = ".".join(filter(None, (self.prefix, self.blocks)))
        if places_of([above])[above].layer is not None:
            raise SiteError(
                f"{self.name}: the first number in a path is that of the block.\n"
                f"However, prefix={self.prefix!r} and blocks={self.blocks!r} hold one.\nTake it out."
            )
        if not self.kinds:
            raise SiteError(f"{self.name}: a block has at least one linear layer.\nHowever, `kinds` is empty.")
        object.__setattr__(self, "kinds", FrozenMap(self.kinds))

    @property
    def block(self) -> str:
        """Path of a block, with {layer} where its number stands: "model.layers.{layer}"."""
        return ".".join([*([self.prefix] if self.prefix else []), self.blocks, "{layer}"])

    def sites(self, target_modules: Rule | None = None) -> tuple[Site, ...]:
        """Return the adapted weights, block by block, with the paths and coordinates that `attach` finds in the model.

        Args:
            target_modules: names, each a whole path or a suffix after a dot, as ["q_proj", "mlp.up_proj"]; or a string,
                a regular expression for whole paths; "all-linear" is every linear layer of the blocks; by default query
                and value.

        Raises:
            SiteError: a rule or a name that matches nothing (the nearest names are told), or no name at all.
        """
        every = {site.path: site for site in self._every_site()}
        if target_modules == ALL_LINEAR or (not isinstance(target_modules, str) and target_modules == [ALL_LINEAR]):
            return tuple(every.values())
        rule = self.targets if target_modules is None else target_modules
        things = f"linear layers in the blocks of {self.name}"
        return tuple(every[path] for path in match(every, rule, what="target_modules", things=things, known=self.kinds))

    def _every_site(self) -> tuple[Site, ...]:
        return tuple(
            Site(f"{self.block.format(layer=layer)}.{kind}", shape, {"layer": layer, "kind": kind})
            for layer in range(self.layers)
            for kind, shape in self.kinds.items()
        )

    def __str__(self) -> str:
        """A table: the blocks, the heads, and the shape of every kind."""
        shared = f", {self.key_heads} of keys" if self.key_heads != self.heads else ""
        width = max(map(len, self.kinds))
        head = f"{self.name}: {self.layers} blocks {self.block}, {self.heads} heads{shared}"
        return "\n".join([head, *(f"  {kind:<{width}}  {out} x {into}" for kind, (out, into) in self.kinds.items())])


def find_host(text: str | PathLike[str]) -> Host:
    """The host of this name, or of this Hugging Face config.json, or of the folder that holds one.

    Paths are those of the model class that the config names under `architectures`, or of the bare model where it names
    none; see `Host.prefix`. They are those of transformers 5.23; earlier releases named the layers of ViT otherwise.

    Raises:
        SiteError: no such name and no such file; the nearest names are told.
        FormatError: a file that is no config of a known model type.
    """
    if not isinstance(text, str | PathLike):
        todo = f'Write find_host("{min(CONFIGS)}"), or the path of a config.json.'
        raise mistake(SiteError, "find_host", "a model's name or a path", told(text), todo)
    name = fspath(text)
    if name.lower() in CONFIGS:
        return host_of(name.lower(), f"the table's {name.lower()}", CONFIGS[name.lower()])
    path = _file_at(name)
    if path is None:
        raise SiteError(
            f"host {name!r}: neither a model of the table nor a config.json, nor a folder that holds one."
            f"{nearest(name.lower(), CONFIGS)}\n"
            "For another model, give the path of the config.json that it was saved with."
        )
    return host_of(path.absolute().parent.name, str(path), _read(path))


def _file_at(text: str) -> Path | None:
    """The config.json that a text names, if it does."""
    path = Path(text)
    try:
        path = path / "config.json" if text and path.is_dir() else path
        return path if path.is_file() else None
    except (OSError, ValueError):  # no path at all: too long, or with a NUL in it
        return None


def _read(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise _fault(str(path), f"a config.json has at most {MOST_BYTES:,} bytes", "this file has more")
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _fault(str(path), "a config.json is a JSON text", f"this is none: {error}") from None
    if not isinstance(config, dict):
        raise _fault(str(path), "a config.json is one JSON object", f"it is {reprlib.repr(config)}")
    return config


def host_of(name: str, where: str, config: Mapping[str, Any]) -> Host:
    """The host that a config describes. Raises FormatError; `where` begins the message."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in LAYOUTS:
        near = nearest(kind if isinstance(kind, str) else "", LAYOUTS).strip()
        came = f"it is {reprlib.repr(kind)}" if kind else "it names none"
        todo = f"{near} For another, make each site by hand, as a Site."
        raise _fault(where, "'model_type' must be one that this release reads", came, todo)
    layout = LAYOUTS[kind]
    _check_blocks(where, config)
    sizes = sizes_of_config(where, layout, config)
    try:
        return Host(
            name=name,
            layers=sizes["layers"],
            heads=sizes["heads"],
            key_heads=sizes["key_heads"],
            head_size=sizes["head_size"],
            prefix=layout.prefix if _is_wrapped(where, layout, config) else "",
            blocks=layout.blocks,
            kinds={inner: (sizes[out], sizes[into]) for inner, (out, into) in layout.kinds.items()},
            targets=layout.targets,
        )
    except SiteError as error:  # sizes that follow from those of the file, or do not go together
        raise FormatError(f"{where}: {error}\n{REMEDY}") from None


def sizes_of_config(where: str, layout: Layout, config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of a host by the words that its layout is written in. Raises FormatError."""
    hidden = _size(where, layout, config, layout.hidden)
    heads = _size(where, layout, config, layout.heads)
    key_heads = _size(where, layout, config, layout.key_heads, heads)
    inner = _size(where, layout, config, layout.inner, 4 * hidden)
    head = _size(where, layout, config, layout.head_size)
    if not head:
        head, rest = divmod(hidden, heads)
        if rest or not head:
            came = f"{heads:,} does not divide {hidden:,}"
            raise _fault(where, f"{layout.heads!r} must divide {layout.hidden!r}", came)
    query, key = heads * head, key_heads * head
    return {
        "hidden": hidden,
        "layers": _size(where, layout, config, layout.layers),
        "heads": heads,
        "key_heads": key_heads,
        "head_size": head,
        "query": query,
        "key": key,
        "fused": query + 2 * key,
        "inner": inner,
        "gates": 2 * inner,
    }


def _size(where: str, layout: Layout, config: Mapping[str, Any], key: str, otherwise: int = 0) -> int:
    """The size under a key, or `otherwise` where the layout has no such key or does not insist on it."""
    if not key or (key in layout.optional and config.get(key) is None):
        return otherwise
    if key not in config:
        raise _fault(where, f"a config of type {config['model_type']!r} has the key {key!r}", "it is missing")
    size = config[key]
    if type(size) is not int or not 1 <= size <= LARGEST:
        raise _fault(where, f"{key!r} must be an integer from 1 to {LARGEST:,}", f"it is {reprlib.repr(size)}")
    return size


def _check_blocks(where: str, config: Mapping[str, Any]) -> None:
    """Raises FormatError where an option puts linear layers into the blocks that no layout has."""
    if config.get("add_cross_attention"):
        raise _fault(where, "only blocks without cross-attention are read", "'add_cross_attention' is set", BY_HAND)
    if config.get("relative_attention") and not config.get("share_att_key"):
        rule = "relative attention is read where its positions share the projections of the tokens"
        raise _fault(where, rule, "'share_att_key' is not set", BY_HAND)


def _is_wrapped(where: str, layout: Layout, config: Mapping[str, Any]) -> bool:
    """Whether the config's model class holds the bare model, rather than to be it."""
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _fault(where, "'architectures' must be a list of names", f"it is {reprlib.repr(names)}")
    return bool(names) and names[0] != layout.base


def _fault(where: str, rule: str, came: str, todo: str = REMEDY) -> FormatError:
    return FormatError(f"{where}: {rule}.\nHowever, {came}.\n{todo}")
