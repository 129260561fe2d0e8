"""Validate a spec: find every fault of its names, its modes and its starting values, one line per fault."""

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Protocol

from tnadapt._language.factor import MAPS, Factor
from tnadapt._language.notation import Axis, modes_of
from tnadapt._language.scale import Scale

__all__: list[str] = []

MOST_AXES = 64  # of an array: numpy has no arrays with more


class Table(Protocol):
    """A spec that is not validated yet."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> str: ...
    @property
    def over(self) -> str: ...
    @property
    def factors(self) -> Mapping[str, Factor]: ...
    @property
    def scale(self) -> Scale: ...
    @property
    def centered(self) -> bool: ...
    @property
    def identity_at_start(self) -> bool: ...
    @property
    def caps(self) -> Mapping[str, str]: ...
    @property
    def given(self) -> str: ...
    @property
    def ties(self) -> Mapping[str, str]: ...


def find_faults(spec: Table, axes: tuple[Axis, ...]) -> list[str]:
    """Find every fault of a spec whose weight has these axes: of its names, its modes and its starting values."""
    return [
        *_name_faults(spec, axes),
        *_mode_faults(spec, axes),
        *_read_faults(spec, axes),
        *_start_faults(spec),
    ]


def _name_faults(spec: Table, axes: tuple[Axis, ...]) -> list[str]:
    outer = [*(mode for axis in axes for mode in axis), *modes_of(spec.over)]
    inner = [mode for factor in spec.factors.values() for mode in factor.modes]
    named = {"spec": [spec.name], "factor": list(spec.factors), "mode": list(dict.fromkeys([*outer, *inner]))}
    faults = [
        f"{what} {name!r}: expected an identifier as its name{_hint(what, name)}"
        for what, names in named.items()
        for name in names
        if not name.isidentifier()
    ]
    faults += [f"mode {mode!r}: occurs twice in weight and over" for mode, times in Counter(outer).items() if times > 1]
    faults += [
        f"factor {name!r}: expected a name that does not begin with '_'"
        for name in spec.factors
        if name.startswith("_")
    ]
    if len(axes) > MOST_AXES:
        faults.append(f"weight: expected at most {MOST_AXES} axes, as many as an array can have, got {len(axes)}")
    if len(axes) < 2:  # noqa: PLR2004
        apart = "; separate axes by spaces, as in 'out in'" if spec.weight else ""
        faults.append(f"weight {spec.weight!r}: expected an out axis and at least one in axis{apart}")
    return faults


def _hint(what: str, name: str) -> str:
    """Say what to write instead of modes that are written as for einsum."""
    words = name.replace("->", ",").split(",")
    return f"; separate modes by spaces, as in {' '.join(words)!r}" if what == "mode" and len(words) > 1 else ""


def _mode_faults(spec: Table, axes: tuple[Axis, ...]) -> list[str]:
    weight, over = [mode for axis in axes for mode in axis], modes_of(spec.over)
    carried = Counter(mode for factor in spec.factors.values() for mode in dict.fromkeys(factor.modes))
    outer = {*weight, *over}
    bonds = {mode: times for mode, times in carried.items() if mode not in outer}
    known = {*outer, *carried}
    faults = [f"weight mode {mode!r}: no factor has it" for mode in weight if mode not in carried]
    faults += [
        f"bond {mode!r}: in one factor only; a mode that is neither in the weight {spec.weight!r} "
        f"nor in over={spec.over!r} must join two"
        for mode, times in bonds.items()
        if times == 1
    ]
    for name, factor in spec.factors.items():
        faults += [
            f"factor {name!r}: mode {mode!r} occurs twice" for mode, times in Counter(factor.modes).items() if times > 1
        ]
        if len(factor.modes) > MOST_AXES:
            faults.append(
                f"factor {name!r}: expected at most {MOST_AXES} modes, as many as an array can have axes, "
                f"got {len(factor.modes)}"
            )
        faults += [f"factor {name!r}: {fault}" for fault in factor.init.faults()]
        faults += [f"factor {name!r}: {fault}" for fault in _map_faults(factor, over)]
        faults += [
            f"factor {name!r}: its fan names the unknown mode {mode!r}" for mode in factor.init.fan if mode not in known
        ]
    faults += spec.scale.faults()
    if spec.scale.rule != "raw" and spec.scale.bond not in bonds:
        faults.append(f"scale: unknown mode {spec.scale.bond!r}; the bonds are {', '.join(bonds) or 'none'}")
    for bond, mode in spec.caps.items():
        if bond not in bonds or mode not in weight:
            faults.append(f"caps: expected a bond and a mode of the weight, got {bond!r} and {mode!r}")
    for bond, mode in spec.ties.items():
        if bond not in bonds or mode not in (*weight, *over) or bond in spec.caps:
            faults.append(
                f"ties: expected a bond without a cap and a mode of the weight or the sites, got {bond!r} and {mode!r}"
            )
    faults += [
        f"given: expected a mode of the weight, got {mode!r}" for mode in modes_of(spec.given) if mode not in weight
    ]
    return faults


def _map_faults(factor: Factor, over: tuple[str, ...]) -> list[str]:
    if not factor.map:
        return []
    if factor.map not in MAPS:
        return [f"expected one of the maps {', '.join(MAPS)}, got {factor.map!r}"]
    if len(factor.modes) < 2 or {*over} & {*factor.modes[-2:]}:  # noqa: PLR2004
        return [f"map {factor.map}: makes its last two modes, which must not be site modes"]
    known = ("constant", "normal", "uniform")
    return (
        []
        if factor.init.kind in known
        else [f"map {factor.map}: expected one of the initializers {', '.join(known)}, got {factor.init.kind}"]
    )


def _read_faults(spec: Table, axes: tuple[Axis, ...]) -> list[str]:
    """Find factors whose starting values are read from the host's weights, but whose modes do not allow it."""
    weight, over = {mode for axis in axes for mode in axis}, modes_of(spec.over)
    outer = {*weight, *over}
    tubes = {mode for factor in spec.factors.values() if factor.init.kind == "cyclic" for mode in factor.modes} - outer
    faults = []
    for name, factor in spec.factors.items():
        kind, bonds = factor.init.kind, [mode for mode in factor.modes if mode not in outer]
        if kind == "cyclic" and not factor.modes:
            faults.append(f"factor {name!r}: cyclic needs at least one mode")
        if kind == "svd" and (len(bonds) != 1 or not weight & {*factor.modes}):
            faults.append(f"factor {name!r}: svd needs one bond and a mode of the weight")
        if kind in ("t_svd", "tensor_cur") and (
            len(over) != 1 or len(tubes & {*bonds}) != 1 or {*over} & {*factor.modes}
        ):
            faults.append(f"factor {name!r}: {kind} needs one site mode, and one bond that a cyclic factor joins to it")
    cores = sorted(name for name, factor in spec.factors.items() if factor.init.kind == "tt_svd")
    for one, other in pairwise(cores):
        if len({*spec.factors[one].modes} & {*spec.factors[other].modes} - outer) != 1:
            faults.append(
                f"factors {one!r} and {other!r}: cores must share one bond with the next core in order of name"
            )
    if cores and sorted(weight) != sorted(
        mode for name in cores for mode in spec.factors[name].modes if mode in weight
    ):
        faults.append("tt_svd: its cores must carry every mode of the weight once")
    return faults


def _start_faults(spec: Table) -> list[str]:
    trained = [name for name, factor in spec.factors.items() if factor.trainable]
    if not trained:
        return ["nothing is trainable"]
    if spec.centered or not spec.identity_at_start:
        return []
    zero = [name for name, factor in spec.factors.items() if factor.is_zero]
    if not zero:
        return [
            "the update does not start at 0: give one trainable factor zeros(), "
            "or write centered=True or identity_at_start=False"
        ]
    if len(zero) > 1:
        return [f"{' and '.join(zero)} all start at 0, so that no factor ever gets a gradient; let only one start at 0"]
    if zero[0] not in trained:
        return [f"{zero[0]} starts at 0 and is frozen, so that the update stays 0; make it trainable"]
    return []
