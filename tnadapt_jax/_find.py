"""Which leaves of a pytree of weights are adapted, and where each of them stands."""

import inspect
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tnadapt import Adapter, AdapterSpec, Site, SiteError, split_sites
from tnadapt.binding import answers, expect_names, mistake, told
from tnadapt_jax._leaf import ROLES, Leaf, Leaves, arrays_of, nearest

__all__ = ["find_sites"]

Rule = str | Collection[str]
LayerAxis = int | Mapping[str, int] | None
LAYOUTS = {"nnx": "in out", "linen": "in out", "equinox": "out in", "hf-torch": "out in"}
ENDINGS = ("kernel", "weight")
EXPERT = "expert"


@dataclass(frozen=True)
class Place:
    """Where one weight stands: `axis` and `index` only in a leaf that holds several."""

    path: str
    stack: str
    layer: int
    kind: str
    axis: int | None = None
    index: int | None = None


@answers(SiteError)
def find_sites(
    weights: Any,
    *,
    target: Rule,
    layout: str,
    layer_axis: LayerAxis = None,
    blocks: Mapping[str, tuple[int, ...]] | None = None,
    fused: Mapping[str, Sequence[str | None] | Mapping[str, int]] | None = None,
    tasks: Collection[str] = (),
) -> Leaves:
    """The weights that a rule matches in any pytree of arrays.

    Args:
        weights: the tree; a leaf's path is `jax.tree_util.keystr(path, simple=True, separator=".")`, and the site's
            path is that without a last ".kernel" or ".weight".
        target: names or suffixes after a dot, or one regular expression for whole site paths.
        layout: how one weight is stored: "out in" or "in out", or a preset: "nnx", "linen", "equinox", "hf-torch". An
            axis that is several in the leaf is said so, as "in out out" for (in, heads, head size). In "expert in out"
            each expert is a site.
        layer_axis: for leaves that hold one weight a layer: the axis of the layers. As a number it goes for every
            match, and the sites are "path[0]", "path[1]", ...; as a mapping from the path of a stack to its axis, the
            sites are named as if each layer stood by itself: "stack.0.path".
        blocks: weights that are cut into blocks, each a site, as in `split_sites`: {"fc1": (4, 1)}.
        fused: weights that hold several projections, each a site: {"qkv": ["q", "k", "v"]}.
        tasks: names of tasks; every site is there once for each.

    Raises:
        SiteError: nothing matched (the nearest paths are told), an unknown layout, or a leaf that it does not fit.
    """
    if weights is None or inspect.isfunction(weights) or isinstance(weights, str | AdapterSpec | Adapter):
        todo = "Pass the weights first, then bind a spec to what is found: spec.bind(leaves.sites, rank=8)."
        raise mistake(SiteError, "find_sites", "a pytree of arrays", told(weights), todo)
    if not isinstance(target, str):
        expect_names(target, "find_sites", "target", SiteError)
    if not isinstance(layout, str):
        todo = f"Write layout={min(LAYOUTS)!r}."
        raise mistake(SiteError, "find_sites", "a layout as a text", told(layout), todo)
    roles = _roles(layout)
    shapes = dict(arrays_of(weights))
    known = {_stem(path): path for path in shapes}
    places = {stem: list(_places(stem, shapes[known[stem]], layer_axis)) for stem in _match(known, target)}
    several = len({place.stack for some in places.values() for place in some if place.stack}) > 1
    found = {
        leaf.site.path: leaf
        for stem, some in places.items()
        for place in some
        for leaf in [_leaf(known[stem], shapes[known[stem]], roles, place, several=several)]
    }
    sites = [leaf.site for leaf in found.values()]
    experts = [site.path for site in sites] if EXPERT in roles else ()
    parts = split_sites(sites, blocks=blocks, fused=fused, experts=experts, tasks=tasks)
    return Leaves(tuple(replace(found[site.weight], site=site) for site in parts))


def _roles(layout: str) -> tuple[str, ...]:
    roles = tuple(LAYOUTS.get(layout, layout).split())
    if {*roles} - {EXPERT} != {"in", "out"}:
        raise SiteError(
            "layout: must be words 'in' and 'out' (and 'expert'), one for each axis of a weight, "
            f"or one of {', '.join(LAYOUTS)}.\nHowever, it is {layout!r}."
        )
    return roles


def _stem(path: str) -> str:
    head, dot, last = path.rpartition(".")
    return head if dot and last in ENDINGS else path


def _match(known: Collection[str], rule: Rule) -> list[str]:
    """The site paths that a rule matches. Raises SiteError where it, or a name in it, matches none."""
    if isinstance(rule, str):
        try:
            found = [path for path in known if re.fullmatch(rule, path)]
        except re.error as error:
            raise SiteError(f"target {rule!r}: not a regular expression: {error}.") from None
        if not found:
            raise SiteError(f"target {rule!r}: matches no leaf's whole path.{nearest(rule, known)}")
        return found
    if not rule:
        raise SiteError(f"target: names nothing to adapt.{nearest('', known)}")
    for name in rule:
        if not any(_is_suffix(name, path) for path in known):
            raise SiteError(f"target {name!r}: matches no leaf.{nearest(name, known)}")
    return [path for path in known if any(_is_suffix(name, path) for name in rule)]


def _stack_of(stem: str, layer_axis: LayerAxis) -> tuple[str, int | None]:
    """The path and the axis of the stack that a leaf is; an axis of None for a leaf that is one weight."""
    if not isinstance(layer_axis, Mapping):
        return "", layer_axis
    stack = max((prefix for prefix in layer_axis if stem.startswith(f"{prefix}.")), key=len, default="")
    return stack, layer_axis.get(stack)


def _places(stem: str, shape: tuple[int, ...], layer_axis: LayerAxis) -> Iterator[Place]:
    """Every weight of one leaf: its site path, its stack, its layer and what follows that, its axis and index."""
    stack, axis = _stack_of(stem, layer_axis)
    if axis is None:
        words = stem.split(".")
        number = next((place for place, word in enumerate(words) if word.isdecimal()), None)
        if number is None:
            yield Place(stem, "", 0, stem)
            return
        stack, inner = ".".join(words[:number]), ".".join(words[number + 1 :])
        yield Place(stem, stack, int(words[number]), inner or stack or "linear")
        return
    if not -len(shape) <= axis < len(shape):
        raise SiteError(f"{stem}: layer_axis must be an axis of the leaf.\nHowever, it is {axis}, the shape {shape}.")
    kind = stem.removeprefix(f"{stack}.") if stack else stem
    for index in range(shape[axis]):
        path = f"{stack}.{index}.{kind}" if stack else f"{stem}[{index}]"
        yield Place(path, stack, index, kind, axis % len(shape), index)


def _leaf(path: str, shape: tuple[int, ...], roles: tuple[str, ...], place: Place, *, several: bool) -> Leaf:
    """The leaf of one weight. Raises SiteError where the layout has another number of axes."""
    stored = tuple(size for axis, size in enumerate(shape) if axis != place.axis)
    if len(stored) != len(roles):
        raise SiteError(
            f"{path}: the layout '{' '.join(roles)}' names {len(roles)} axes of one weight.\n"
            f"However, this one has the {len(stored)} axes {stored}.\n"
            + ("If one is that of the layers, pass layer_axis." if place.axis is None else "Say one word an axis.")
        )
    both = list(zip(stored, roles, strict=True))
    sides = [side for side in ROLES if side in roles]
    whole = tuple(math.prod(size for size, role in both if role == side) for side in sides)
    kind = f"{place.stack}.{place.kind}" if several and place.stack and place.kind != place.stack else place.kind
    site = Site(place.path, whole, {"layer": place.layer, "kind": kind})
    return Leaf(site, path, roles, shape, place.axis, place.index)


def _is_suffix(name: str, path: str) -> bool:
    return path == name or path.endswith(f".{name}")
