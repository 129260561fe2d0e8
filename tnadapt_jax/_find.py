"""Which leaves of a pytree of weights are adapted, and where each of them stands."""

import inspect
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tnadapt import Adapter, AdapterSpec, Site, SiteError, split_sites
from tnadapt.binding import Place, Rule, answers, coordinates_of, expect_names, match, mistake, places_of, told
from tnadapt_jax._leaf import ROLES, Leaf, Leaves, arrays_of

__all__ = ["find_sites"]

LayerAxis = int | Mapping[str, int] | None
LAYOUTS = {"nnx": "in out", "linen": "in out", "equinox": "out in", "hf-torch": "out in"}
ENDINGS = ("kernel", "weight")
EXPERT = "expert"


@dataclass(frozen=True)
class Weight:
    """One weight of a tree: the path of its leaf, and its axis and index in a leaf that holds several."""

    leaf: str
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
    found: dict[str, Weight] = {}
    places: dict[str, Place] = {}
    for stem in match(known, target, what="target", things="leaves"):
        for path, place, weight in _weights(stem, known[stem], shapes[known[stem]], layer_axis):
            found[path] = weight
            if place is not None:
                places[path] = place
    plain = places_of([path for path in found if path not in places], among=shapes)
    coordinates = coordinates_of({path: places.get(path) or plain[path] for path in found})
    leaves = {path: _leaf(path, weight, shapes, roles, coordinates[path]) for path, weight in found.items()}
    sites = [leaf.site for leaf in leaves.values()]
    experts = [site.path for site in sites] if EXPERT in roles else ()
    parts = split_sites(sites, blocks=blocks, fused=fused, experts=experts, tasks=tasks)
    return Leaves(tuple(replace(leaves[site.weight], site=site) for site in parts))


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


def _stack_of(stem: str, layer_axis: LayerAxis) -> tuple[str, int | None]:
    """The path and the axis of the stack that a leaf is; an axis of None for a leaf that is one weight."""
    if not isinstance(layer_axis, Mapping):
        return "", layer_axis
    stack = max((prefix for prefix in layer_axis if stem.startswith(f"{prefix}.")), key=len, default="")
    return stack, layer_axis.get(stack)


def _weights(
    stem: str, path: str, shape: tuple[int, ...], layer_axis: LayerAxis
) -> Iterator[tuple[str, Place | None, Weight]]:
    """List the weights of one leaf: the path of each as a site, its place where the caller gave it, the weight."""
    stack, axis = _stack_of(stem, layer_axis)
    if axis is None:
        yield stem, None, Weight(path)
        return
    if not -len(shape) <= axis < len(shape):
        raise SiteError(f"{stem}: layer_axis must be an axis of the leaf.\nHowever, it is {axis}, the shape {shape}.")
    kind = stem.removeprefix(f"{stack}.") if stack else stem
    for index in range(shape[axis]):
        name = f"{stack}.{index}.{kind}" if stack else f"{stem}[{index}]"
        yield name, Place(stack, index, kind), Weight(path, axis % len(shape), index)


def _leaf(
    path: str,
    weight: Weight,
    shapes: Mapping[str, tuple[int, ...]],
    roles: tuple[str, ...],
    coordinates: Mapping[str, int | str],
) -> Leaf:
    """Describe the leaf of one weight. Raises SiteError where the layout has another number of axes."""
    shape = shapes[weight.leaf]
    stored = tuple(size for axis, size in enumerate(shape) if axis != weight.axis)
    if len(stored) != len(roles):
        raise SiteError(
            f"{weight.leaf}: the layout '{' '.join(roles)}' names {len(roles)} axes of one weight.\n"
            f"However, this one has the {len(stored)} axes {stored}.\n"
            + ("If one is that of the layers, pass layer_axis." if weight.axis is None else "Say one word an axis.")
        )
    both = list(zip(stored, roles, strict=True))
    sides = [side for side in ROLES if side in roles]
    whole = tuple(math.prod(size for size, role in both if role == side) for side in sides)
    return Leaf(Site(path, whole, coordinates), weight.leaf, roles, shape, weight.axis, weight.index)
