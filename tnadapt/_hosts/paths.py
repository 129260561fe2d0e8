"""Paths of modules: which of them a rule matches, and which layer and kind each path stands for."""

import difflib
import operator
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from tnadapt._errors import SiteError
from tnadapt._hosts.site import Coordinate, Site
from tnadapt._signature import answers, mistake, told

__all__ = ["Place", "Rule", "coordinates_of", "in_layers", "is_named", "match", "nearest", "places_of", "sites_of"]

Rule = str | Collection[str]
"""Which weights: a regular expression for whole paths, or a collection of paths and their last words."""
_NUMBERED = re.compile(r"(?:(?P<stem>.*\D)_)?(?P<number>[0-9]+)")  # "3", or "encoder_layer_3"


def is_named(path: str, name: str) -> bool:
    """Return whether a name is the whole path, or a suffix of it after a dot."""
    return path == name or path.endswith(f".{name}")


def match(
    paths: Collection[str], rule: Rule, *, what: str, things: str, known: Collection[str] | None = None
) -> list[str]:
    """Find the paths that a rule matches, in the order of `paths`.

    Args:
        paths: the paths to choose from.
        rule: a collection of names, each a whole path or a suffix after a dot; or a string, which is a regular
            expression for whole paths, as in PEFT.
        what: the argument that holds the rule; it begins an error message.
        things: what the paths are, in the plural, for an error message.
        known: the paths from which an error message suggests the nearest names; by default all.

    Raises:
        SiteError: the rule, or one name in it, matches nothing; the rule is empty, or an invalid regular expression.
    """
    hints = paths if known is None else known
    if isinstance(rule, str):
        try:
            found = [path for path in paths if re.fullmatch(rule, path)]
        except re.error as error:
            raise SiteError(
                f"{what}: expected a regular expression, got {rule!r} ({error}).\nPass a list to match names."
            ) from None
        if not found:
            raise SiteError(
                f"{what}: expected a regular expression that matches whole paths of {things}, got {rule!r}, which "
                f"matches none.{nearest(rule, hints)}\nPass a list to match names."
            )
        return found
    names = list(rule) if isinstance(rule, Collection) else [rule]
    if not names or not all(isinstance(name, str) and name for name in names):  # the empty path is the whole model
        raise SiteError(f"{what}: expected names of {things}, got {rule!r}.{nearest('', hints)}")
    for name in names:
        if not any(is_named(path, name) for path in paths):
            raise SiteError(
                f"{what}: expected names of {things}, got {name!r}, which matches none.{nearest(name, hints)}"
            )
    return [path for path in paths if any(is_named(path, name) for name in names)]


def nearest(name: str, known: Collection[str]) -> str:
    """Return a line that lists the three nearest names, to be appended to a message."""
    names = list(dict.fromkeys([*(path.split(".")[-1] for path in known), *known]))
    near = ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.0))
    return f"\nThe nearest names are {near}." if near else "\nThere is no name to choose from."


@dataclass(frozen=True)
class Place:
    """A path taken apart: the path of its stack of layers, the layer, and the path inside that layer.

    Outside a stack of layers, `layer` is None and `inner` is the whole path.
    """

    stack: str
    layer: int | None
    inner: str


def places_of(paths: Iterable[str], among: Iterable[str] | None = None) -> dict[str, Place]:
    """Read the layer and the kind from each path.

    The layer is the first number in a path: a number by itself, as in "h.0.attn", or a number at the end of a name, as
    in "encoder_layer_0.attn", if the same name with another number has the same path after it
    ("encoder_layer_1.attn"). A number at the very beginning without such a sibling belongs to a wrapper, and is skipped
    if another number follows ("0.encoder.layer.3.attn").

    Args:
        paths: the paths of modules.
        among: all paths of the host, in which siblings are looked for; by default `paths`.
    """
    chosen = list(paths)
    repeated = _repeated(chosen if among is None else among)
    return {path: _place(path, repeated) for path in chosen}


def _repeated(paths: Iterable[str]) -> set[tuple[str, str]]:
    """Find the parents and stems of numbered words that have a sibling: another number with the same path after it."""
    first: dict[tuple[str, str, str], str] = {}
    found: set[tuple[str, str]] = set()
    for path in paths:
        words = path.split(".")
        for place, word in enumerate(words):
            if (numbered := _NUMBERED.fullmatch(word)) is None:
                continue
            stem, number = numbered["stem"] or "", numbered["number"]
            key = (".".join(words[:place]), stem)
            if key not in found and first.setdefault((*key, ".".join(words[place + 1 :])), number) != number:
                found.add(key)
    return found


def _place(path: str, repeated: set[tuple[str, str]]) -> Place:
    words = path.split(".")
    places: list[Place] = []
    for at, word in enumerate(words):
        if (numbered := _NUMBERED.fullmatch(word)) is None:
            continue
        parent, stem = ".".join(words[:at]), numbered["stem"] or ""
        is_repeated = (parent, stem) in repeated
        if stem and not is_repeated:
            continue
        stack = ".".join([*words[:at], *([stem] if stem else [])])
        inner = ".".join(words[at + 1 :])
        places.append(Place(stack, int(numbered["number"]), inner or stack or "linear"))
        if at > 0 or is_repeated:
            return places[-1]  # otherwise it may belong to a wrapper
    return places[0] if places else Place("", None, path)


def coordinates_of(places: Mapping[str, Place]) -> dict[str, dict[str, Coordinate]]:
    """Return the coordinates `layer` and `kind` of each path.

    The kind is the path inside the layer. If there are several stacks (an encoder and a decoder), it begins with the
    path of the stack. Outside a stack, the layer is 0 and the kind is the whole path. No two paths have the same layer
    and kind: where they would, the kind begins with the path of the stack, and if that does not help it is the path.
    """
    stacks = {place.stack for place in places.values() if place.layer is not None}
    found = _coordinates(places, several=len(stacks) > 1)
    if _shared(found):  # "blocks.0.fc" beside "fc"
        found = _coordinates(places, several=True)
    return found | {path: found[path] | {"kind": path} for path in _shared(found)}


def _coordinates(places: Mapping[str, Place], *, several: bool) -> dict[str, dict[str, Coordinate]]:
    """Return the coordinates of each path; with `several`, a kind begins with the path of its stack."""
    return {
        path: {
            "layer": place.layer or 0,
            "kind": f"{place.stack}.{place.inner}"
            if several and place.stack and place.layer is not None
            else place.inner,
        }
        for path, place in places.items()
    }


def _shared(coordinates: Mapping[str, Mapping[str, Coordinate]]) -> list[str]:
    """Return the paths whose coordinates another path has too."""
    often = Counter((at["layer"], at["kind"]) for at in coordinates.values())
    return [path for path, at in coordinates.items() if often[at["layer"], at["kind"]] > 1]


@answers(SiteError)
def sites_of(shapes: Mapping[str, tuple[int, ...]], *, among: Iterable[str] | None = None) -> tuple[Site, ...]:
    """Make one site per weight from the path of its module and its shape (out axis first).

    Args:
        shapes: path -> shape.
        among: all paths of the host, of modules or of parameters: a number at the end of a name counts as a layer only
            if the same name occurs with another number. By default the paths of `shapes`.

    Raises:
        SiteError: a shape is not a tuple of positive integers.
    """
    if not isinstance(shapes, Mapping) or not all(isinstance(path, str) for path in shapes):
        raise mistake(SiteError, "sites_of", "shapes by path", told(shapes), 'Write {"h.0.q_proj": (out, in)}.')
    if isinstance(among, str) or not isinstance(among, Iterable | None):
        raise mistake(SiteError, "sites_of", "paths as among", told(among), 'Write among=["h.0.q_proj", ...].')
    coordinates = coordinates_of(places_of(shapes, among))
    return tuple(Site(path, shape, coordinates[path]) for path, shape in shapes.items())


def in_layers(paths: Iterable[str], layers: int | Collection[int], *, among: Iterable[str] | None = None) -> list[str]:
    """Keep the paths that are in these layers.

    Raises SiteError for a layer that contains none of the paths.
    """
    asked = layers if isinstance(layers, Collection) else [layers]
    wanted = {operator.index(layer) for layer in asked}
    places = places_of(paths, among)
    if missing := wanted - {place.layer for place in places.values()}:
        known = sorted({place.layer for place in places.values() if place.layer is not None})
        raise SiteError(
            f"layers_to_transform: expected layers that hold a target, got {sorted(missing)}.\n"
            f"The targets are in layers {known}."
        )
    return [path for path, place in places.items() if place.layer in wanted]
