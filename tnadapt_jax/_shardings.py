"""Shardings of params by mode: which axes of the arrays are split over which axes of a mesh."""

import math
from collections.abc import Iterable, Mapping, Sequence

from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from tnadapt import Adapter, SiteError
from tnadapt.binding import answers, expect_adapter, mistake, nearest, told
from tnadapt_jax._params import TREES, names_in

__all__ = ["shardings"]

Rule = str | tuple[str, ...] | None
SIDES = ("out", "in")
AXES_OF = {"host_left": ("out", ""), "host_values": ("",), "host_right": ("", "in")}  # the parts of a weight's SVD


@answers(SiteError)
def shardings(
    adapter: Adapter, rules: Mapping[str, Rule], *, mesh: Mesh | AbstractMesh | None = None
) -> dict[str, dict[str, PartitionSpec]]:
    """Return how each array of the params is split over a mesh, as a tree like the params.

    An axis of an array is a mode of the spec, and is split as the rule of its mode says. The words "out" and "in" are
    those axes of the weight: where the spec splits one into several modes, its rule is that of the first of them, so
    that the array is cut where an activation is. An axis whose mode has no rule is not split. An axis of the mesh is
    used once in an array, by the first mode that has it.

    Args:
        adapter: a spec bound to sites.
        rules: mode -> an axis of the mesh, several in a tuple, or None: {"out": "tensor", "in": "fsdp"}.
        mesh: the mesh. If it is given, its axes and all sizes are checked.

    Returns:
        {"trainable": {name: PartitionSpec}, "frozen": {name: PartitionSpec}}

    Raises:
        SiteError: for a rule of no mode of the adapter, an axis that the mesh does not have, or a size that it does not
            divide: nothing is left whole that a rule says is split.
    """
    expect_adapter(adapter, "shardings")
    _check(adapter, rules, mesh)
    found: dict[str, dict[str, PartitionSpec]] = {}
    for tree in TREES:
        found[tree] = {}
        for name, shape in names_in(adapter, tree).items():
            spec = _once([_rule_of(adapter, rules, word) for word in _words(adapter, name, len(shape))])
            if mesh is not None:
                _check_sizes(name, _words(adapter, name, len(shape)), shape, spec, mesh)
            found[tree][name] = PartitionSpec(*spec)  # type: ignore[no-untyped-call]
    return found


def _words(adapter: Adapter, name: str, axes: int) -> Sequence[str]:
    """Return the mode of each axis of an array; "out" and "in" for those of the host's weight."""
    if name in adapter.hosts:
        plain = (*SIDES, *[""] * max(0, axes - len(SIDES)))
        return AXES_OF.get(adapter.hosts[name][1], plain)
    return (adapter.slots.get(name) or adapter.starts[name]).factor.held


def _rule_of(adapter: Adapter, rules: Mapping[str, Rule], word: str) -> Rule:
    """Return the rule of a mode: its own, or else that of the axis of the weight whose first mode it is."""
    if word in rules:
        return rules[word]
    axes = adapter.networks[0].axes
    return next((rules.get(side) for side, axis in zip(SIDES, axes, strict=False) if axis[:1] == (word,)), None)


def _once(spec: Iterable[Rule]) -> list[Rule]:
    """Return the entries of a spec without those that have an axis of the mesh which is used before."""
    used: set[str] = set()
    found: list[Rule] = []
    for entry in spec:
        names = _names(entry)
        found.append(None if used.intersection(names) else entry)
        used.update(names)
    return found


def _check(adapter: Adapter, rules: Mapping[str, Rule], mesh: Mesh | AbstractMesh | None) -> None:
    """Raise SiteError unless the rules are of modes of this adapter, and name axes of the mesh."""
    if not isinstance(rules, Mapping):
        todo = 'Write {"out": "tensor", "in": "fsdp"}; the mesh is the argument mesh=.'
        raise mistake(SiteError, "shardings", "rules as a mapping from modes to axes of a mesh", told(rules), todo)
    modes = {mode for factor in adapter.spec.arrays.values() for mode in factor.modes}
    places = {name for site in adapter.sites for name in site.coordinates}  # rules may serve several adapters
    known = [*SIDES, *sorted((modes | places) - {*SIDES})]
    for mode, rule in rules.items():
        if mode not in known:
            raise SiteError(f"rules: expected modes of this adapter, got {mode!r}.{nearest(str(mode), known)}")
        if not isinstance(rule, str | tuple | None) or not all(isinstance(name, str) for name in _names(rule)):
            todo = "Write the name of one axis of the mesh, a tuple of names, or None."
            raise mistake(SiteError, f"rules[{mode!r}]", "an axis of the mesh", told(rule), todo)
        for name in _names(rule):
            if mesh is not None and name not in mesh.axis_names:
                raise SiteError(
                    f"rules[{mode!r}]: expected axes of the mesh, which has {', '.join(map(str, mesh.axis_names))}, "
                    f"got {name!r}."
                )


def _check_sizes(
    name: str, modes: Sequence[str], shape: Sequence[int], spec: Sequence[Rule], mesh: Mesh | AbstractMesh
) -> None:
    for mode, size, entry in zip(modes, shape, spec, strict=True):
        devices = math.prod(mesh.shape[axis] for axis in _names(entry))
        if size % devices:
            raise SiteError(
                f"{name}: expected a size of its mode {mode!r} that {devices} devices divide, got {size}.\n"
                f"Write {mode!r}: None to leave it whole, or pass the rule for another mode."
            )


def _names(entry: Rule) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else entry
