"""Find the leaves of a pytree of weights to adapt, and the layer and kind of each."""

import inspect
import math
from collections import Counter
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
    """One weight of a tree: the path of its leaf, and its axis and index if the leaf is a stack of weights."""

    leaf: str
    axis: int | None = None
    index: int | None = None


@answers(SiteError)
def find_sites(
    weights: Any,
    *,
    target: Rule | None = None,
    layout: str | Mapping[str, str],
    layer_axis: LayerAxis = None,
    blocks: Mapping[str, tuple[int, ...]] | None = None,
    fused: Mapping[str, Sequence[str | None] | Mapping[str, int]] | None = None,
    tasks: Collection[str] = (),
) -> Leaves:
    """Find the weights that a rule matches in any pytree of arrays.

    Args:
        weights: the tree. The path of a leaf is `jax.tree_util.keystr(path, simple=True, separator=".")`; the path of
            a site is the same without a final ".kernel" or ".weight".
        target: names, suffixes after a dot, or one regular expression for whole site paths. By default the names in
            `layout`.
        layout: how one weight is stored: "out in" or "in out", or a preset: "nnx", "linen", "equinox", "hf-torch". An
            axis that is split in the leaf is repeated, as in "in out out" for (in, heads, head size). In "expert in
            out" each expert is a site. If not all are stored in one way, a mapping from names to layouts:
            {"query": "in out out", "out": "in in out"}.
        layer_axis: the axis of the layers, for leaves that hold one weight per layer. A number applies to every match,
            and the sites are "path[0]", "path[1]", ...; a mapping gives the axis by the path of a stack, and the sites
            are named as if the layers were separate: "stack.0.path".
        blocks: weights that are split into blocks, each of them a site, as in `split_sites`: {"fc1": (4, 1)}. The name
            of a stack stands for all of its layers.
        fused: weights that hold several projections, each of them a site: {"qkv": ["q", "k", "v"]}.
        tasks: names of tasks. Every site exists once per task.

    Returns:
        The leaves found. Their `sites` are the argument of `AdapterSpec.bind`.

    Raises:
        SiteError: if nothing matches (the message names the nearest paths), if the layout is unknown, or if a leaf
            does not fit the layout, has none or has two.
    """
    if weights is None or inspect.isfunction(weights) or isinstance(weights, str | AdapterSpec | Adapter):
        todo = "Pass the weights first, then bind a spec to the leaves found: spec.bind(leaves.sites, rank=8)."
        raise mistake(SiteError, "find_sites", "a pytree of arrays", told(weights), todo)
    if target is not None and not isinstance(target, str):
        expect_names(target, "find_sites", "target", SiteError)
    shapes = dict(arrays_of(weights))
    known = {_stem(path): path for path in shapes}
    stems, roles = _matched(known, target, layout)
    _expect_one_leaf(stems, [path for path, _ in arrays_of(weights)])
    found: dict[str, Weight] = {}
    places: dict[str, Place] = {}
    for stem in stems:
        for path, place, weight in _weights(stem, known[stem], shapes[known[stem]], layer_axis):
            found[path] = weight
            if place is not None:
                places[path] = place
    plain = places_of([path for path in found if path not in places], among=shapes)
    coordinates = coordinates_of({path: places.get(path) or plain[path] for path in found})
    leaves = {
        path: _leaf(path, weight, shapes, roles[_stem(weight.leaf)], coordinates[path])
        for path, weight in found.items()
    }
    experts = [path for path, leaf in leaves.items() if EXPERT in leaf.roles]
    sites = [leaf.site for leaf in leaves.values()]
    blocks, fused = (_by_site(asked, found) for asked in (blocks, fused))
    parts = split_sites(sites, blocks=blocks, fused=fused, experts=experts, tasks=tasks)
    return Leaves(tuple(replace(leaves[site.weight], site=site) for site in parts))


def _matched(
    known: Collection[str], target: Rule | None, layout: str | Mapping[str, str]
) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Return the paths that are adapted, and how each is stored."""
    if not isinstance(layout, Mapping):
        roles = _roles(layout)
        if target is None:
            todo = 'Write target=["q_proj"], or name the leaves in the layout: layout={"q_proj": "in out"}.'
            raise mistake(SiteError, "find_sites", "a target beside one layout for all", "none", todo)
        stems = match(known, target, what="target", things="leaves")
        return stems, dict.fromkeys(stems, roles)
    held: dict[str, tuple[str, ...]] = {}
    for name, one in layout.items():
        roles = _roles(one)
        for stem in match(known, [name], what="layout", things="leaves"):
            if held.setdefault(stem, roles) != roles:
                raise SiteError(f"{stem}: expected one layout, got '{' '.join(held[stem])}' and {one!r} (of {name!r}).")
    stems = match(known, list(layout) if target is None else target, what="target", things="leaves")
    if missing := [stem for stem in stems if stem not in held]:
        raise SiteError(
            f"{missing[0]}: expected a layout for each leaf of the target, got none.\n"
            f"Add it to the layout, whose names are {', '.join(layout)}."
        )
    return stems, held


def _expect_one_leaf(stems: Collection[str], paths: Collection[str]) -> None:
    """Raise SiteError unless each of these names is that of one leaf."""
    counts = Counter(map(_stem, paths))
    for stem in stems:
        if counts[stem] > 1:
            held = ", ".join(path for path in paths if _stem(path) == stem)
            raise SiteError(
                f"{stem}: expected one leaf of this name, got {held}.\n"
                "Rename one of them: a name that contains a dot reads like two names, and a final .kernel or .weight "
                "is left out."
            )


def _roles(layout: str) -> tuple[str, ...]:
    if not isinstance(layout, str):
        todo = f"Write layout={min(LAYOUTS)!r}."
        raise mistake(SiteError, "find_sites", "a layout as a string", told(layout), todo)
    roles = tuple(LAYOUTS.get(layout, layout).split())
    if {*roles} - {EXPERT} != {"in", "out"}:
        raise SiteError(
            "layout: expected the words 'in' and 'out' (and 'expert'), one per axis of a weight, "
            f"or one of {', '.join(LAYOUTS)}, got {layout!r}."
        )
    return roles


def _stem(path: str) -> str:
    head, dot, last = path.rpartition(".")
    return head if dot and last in ENDINGS else path


def _stack_of(stem: str, layer_axis: LayerAxis) -> tuple[str, int | None]:
    """Return the path and the axis of the stack that a leaf is part of. The axis is None for a single weight."""
    if not isinstance(layer_axis, Mapping):
        return "", layer_axis
    stack = max((prefix for prefix in layer_axis if stem.startswith(f"{prefix}.")), key=len, default="")
    return stack, layer_axis.get(stack)


def _by_site(asked: Any, found: Mapping[str, Weight]) -> Any:
    """Return what is asked for by the names of weights, with the paths of its layers for the name of a stack."""
    if not isinstance(asked, Mapping):
        return asked
    named: dict[Any, Any] = {}
    for name, parts in asked.items():
        paths = [path for path, one in found.items() if one.axis is not None and _is_named(_stem(one.leaf), name)]
        others = [path for path in found if path not in paths and _is_named(path, name)]
        if not paths or all(_is_named(path, name) for path in paths):
            named[name] = parts  # which names the layers as well
            continue
        both = [*paths, *others]  # without those that the others name
        named |= {path: parts for path in both if not any(one != path and _is_named(path, one) for one in both)}
    return named


def _is_named(path: str, name: object) -> bool:
    return f".{path}".endswith(f".{name}")


def _weights(
    stem: str, path: str, shape: tuple[int, ...], layer_axis: LayerAxis
) -> Iterator[tuple[str, Place | None, Weight]]:
    """Yield the weights of one leaf: the path of the site, its place if the caller gave it, and the weight."""
    stack, axis = _stack_of(stem, layer_axis)
    if axis is None:
        yield stem, None, Weight(path)
        return
    if not -len(shape) <= axis < len(shape):
        raise SiteError(f"{stem}: expected layer_axis to be an axis of the shape {shape}, got {axis}.")
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
    """Return the leaf of one weight. Raises SiteError if the layout has another number of axes."""
    shape = shapes[weight.leaf]
    stored = tuple(size for axis, size in enumerate(shape) if axis != weight.axis)
    if len(stored) != len(roles):
        raise SiteError(
            f"{weight.leaf}: expected a weight of {len(roles)} axes, as in the layout '{' '.join(roles)}', "
            f"got the {len(stored)} axes {stored}.\n"
            + ("If one is the axis of the layers, pass layer_axis." if weight.axis is None else "Name each axis once.")
        )
    both = list(zip(stored, roles, strict=True))
    sides = [side for side in ROLES if side in roles]
    whole = tuple(math.prod(size for size, role in both if role == side) for side in sides)
    return Leaf(Site(path, whole, coordinates), weight.leaf, roles, shape, weight.axis, weight.index)
