"""Find the sites of a host without loading its weights: by the name of a well-known model, or from a config.json."""

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
MOST_BYTES = 2**24  # of a config.json; one with 20,000 class names has less than a tenth of that
REMEDY = "Give the config.json that the model was saved with."
BY_HAND = "Make each site by hand, as a Site."


@dataclass(frozen=True, kw_only=True)
class Host:
    """The linear layers in the blocks of a transformer. Layers outside the blocks (pooler, head) are not included.

    Args:
        name: the name of the model in tables.
        layers: the number of blocks.
        heads: the number of attention heads; `sizes={"head": host.heads}` splits an axis by heads.
        key_heads: the number of key and value heads; fewer than `heads` if several query heads share one.
        head_size: the size of one head; the weights of queries, keys and values consist of whole heads.
        prefix: the path of the bare model inside the loaded model: "roberta" in a RobertaForMaskedLM, "" in a
            RobertaModel. `dataclasses.replace(host, prefix="")` makes the bare model's host.
        blocks: the path of the list of blocks inside the bare model.
        kinds: name of a linear layer inside its block -> (out, in) of its weight, in the order of the model.
        targets: the kinds to adapt by default: query and value, or the fused projection that contains them.

    Raises:
        SiteError: a size is not a positive integer, there are more than 10,000 layers, the key heads do not divide the
            heads, or `prefix` or `blocks` contains a number, which would be read as that of a block.
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
        """Check every size and path, and freeze the mapping."""
        for what in ("layers", "heads", "key_heads", "head_size"):
            check_size(f"{self.name}: {what}", getattr(self, what))
        for kind, shape in self.kinds.items():
            for size in shape:
                check_size(f"{self.name}: an axis of {kind}", size)
        if self.layers > MOST_LAYERS:
            raise SiteError(f"{self.name}: expected at most {MOST_LAYERS:,} layers, got {self.layers:,}.")
        if self.heads % self.key_heads:
            raise SiteError(
                f"{self.name}: expected a number of key heads that divides the {self.heads:,} attention heads, got "
                f"{self.key_heads:,}."
            )
        above = ".".join(filter(None, (self.prefix, self.blocks)))
        if places_of([above])[above].layer is not None:
            raise SiteError(
                f"{self.name}: expected a path to the blocks without a number, got prefix={self.prefix!r} and "
                f"blocks={self.blocks!r}.\nRemove the number; the first one in a path must be that of the block."
            )
        if not self.kinds:
            raise SiteError(f"{self.name}: expected at least one linear layer in a block, got no `kinds`.")
        object.__setattr__(self, "kinds", FrozenMap(self.kinds))

    @property
    def block(self) -> str:
        """The path of a block, with {layer} in place of its number: "model.layers.{layer}"."""
        return ".".join([*([self.prefix] if self.prefix else []), self.blocks, "{layer}"])

    def sites(self, target_modules: Rule | None = None) -> tuple[Site, ...]:
        """Return the weights to adapt, block by block, with the paths and coordinates that `attach` finds in the model.

        Args:
            target_modules: names, each a whole path or a suffix after a dot, such as ["q_proj", "mlp.up_proj"]; or a
                string, which is a regular expression for whole paths; or "all-linear" for every linear layer of the
                blocks. By default query and value.

        Raises:
            SiteError: the rule, or one name in it, matches nothing (the message lists the nearest names), or the rule
                is empty.
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
        """Return a table of the blocks, the heads, and the shape of every kind."""
        shared = f", {self.key_heads} of keys" if self.key_heads != self.heads else ""
        width = max(map(len, self.kinds))
        head = f"{self.name}: {self.layers} blocks {self.block}, {self.heads} heads{shared}"
        return "\n".join([head, *(f"  {kind:<{width}}  {out} x {into}" for kind, (out, into) in self.kinds.items())])


def find_host(text: str | PathLike[str]) -> Host:
    """Find a host by the name of a well-known model, or by the path of a Hugging Face config.json or its folder.

    The paths of the sites are those of the model class that the config names under `architectures`, or of the bare
    model if it names none; see `Host.prefix`. They follow transformers 5.23; earlier releases name the layers of ViT
    differently.

    Raises:
        SiteError: there is no such name and no such file; the message lists the nearest names.
        FormatError: the file is not the config of a known model type.
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
            f"find_host: expected a known model, a config.json or a folder that contains one, got {name!r}."
            f"{nearest(name.lower(), CONFIGS)}\n"
            "For another model, give the path of the config.json that it was saved with."
        )
    return host_of(path.absolute().parent.name, str(path), _read(path))


def _file_at(text: str) -> Path | None:
    """Return the config.json that a text names, or None."""
    path = Path(text)
    try:
        path = path / "config.json" if text and path.is_dir() else path
        return path if path.is_file() else None
    except (OSError, ValueError):  # not a path: too long, or with a NUL in it
        return None


def _read(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise _fault(str(path), f"a config.json of at most {MOST_BYTES:,} bytes", "a larger file")
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _fault(str(path), "JSON in a config.json", f"text that is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise _fault(str(path), "one JSON object in a config.json", reprlib.repr(config))
    return config


def host_of(name: str, where: str, config: Mapping[str, Any]) -> Host:
    """Return the host that a config describes. Raises FormatError for an invalid config; `where` begins the message."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in LAYOUTS:
        near = nearest(kind if isinstance(kind, str) else "", LAYOUTS).strip()
        given = reprlib.repr(kind) if kind else "none"
        todo = f"{near} For another, make each site by hand, as a Site."
        raise _fault(where, "a 'model_type' that this release reads", given, todo)
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
    except SiteError as error:  # sizes that follow from those in the file, or that do not fit together
        raise FormatError(f"{where}: {error}\n{REMEDY}") from None


def sizes_of_config(where: str, layout: Layout, config: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes of a host by the words that layouts use. Raises FormatError for a missing or invalid size."""
    hidden = _size(where, layout, config, layout.hidden)
    heads = _size(where, layout, config, layout.heads)
    key_heads = _size(where, layout, config, layout.key_heads, heads)
    inner = _size(where, layout, config, layout.inner, 4 * hidden)
    head = _size(where, layout, config, layout.head_size)
    if not head:
        head, rest = divmod(hidden, heads)
        if rest or not head:
            given = f"{heads:,}, which does not divide {hidden:,}"
            raise _fault(where, f"a {layout.heads!r} that divides {layout.hidden!r}", given)
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
    """Return the size under a key, or `otherwise` if the layout has no such key, or if an optional key is missing."""
    if not key or (key in layout.optional and config.get(key) is None):
        return otherwise
    if key not in config:
        raise _fault(where, f"the key {key!r} in a config of type {config['model_type']!r}", "none")
    size = config[key]
    if type(size) is not int or not 1 <= size <= LARGEST:
        raise _fault(where, f"an integer from 1 to {LARGEST:,} as {key!r}", reprlib.repr(size))
    return size


def _check_blocks(where: str, config: Mapping[str, Any]) -> None:
    """Raise FormatError if an option of the config adds linear layers to the blocks that no layout has."""
    if config.get("add_cross_attention"):
        raise _fault(where, "blocks without cross-attention", "'add_cross_attention'", BY_HAND)
    if config.get("relative_attention") and not config.get("share_att_key"):
        expected = "'share_att_key' with relative attention, so that positions share the projections of the tokens"
        raise _fault(where, expected, "a config that does not set it", BY_HAND)


def _is_wrapped(where: str, layout: Layout, config: Mapping[str, Any]) -> bool:
    """Return whether the model class of the config wraps the bare model."""
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _fault(where, "a list of names as 'architectures'", reprlib.repr(names))
    return bool(names) and names[0] != layout.base


def _fault(where: str, expected: str, given: str, todo: str = REMEDY) -> FormatError:
    return FormatError(f"{where}: expected {expected}, got {given}.\n{todo}")
