"""Validate a spec: find every fault of its names, its modes and its starting values, one line per fault."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Protocol

from tnadapt._language.factor import MAPS, Factor, Same
from tnadapt._language.initializer import ones
from tnadapt._language.notation import Axis, modes_of
from tnadapt._language.scale import Scale
from tnadapt._language.sizes import SizeRule
from tnadapt._language.terms import (
    Modes,
    Node,
    Sum,
    Term,
    arrays_of,
    nodes_of,
    terms_of,
    tied_bonds,
    words_of,
)

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
    def factors(self) -> Mapping[str, Factor | Same]: ...
    @property
    def terms(self) -> Sequence[str]: ...
    @property
    def scale(self) -> Scale: ...
    @property
    def sizes(self) -> Mapping[str, SizeRule | int]: ...
    @property
    def start(self) -> object: ...


def find_faults(spec: Table, axes: tuple[Axis, ...]) -> list[str]:
    """Find every fault of a spec whose weight has these axes: of its names, terms, modes, sizes and starting values."""
    arrays, over = arrays_of(spec.factors), modes_of(spec.over)
    faults = [*_name_faults(spec, axes), *_copy_faults(spec, arrays, over), *_term_faults(spec)]
    faults += [fault for name, factor in arrays.items() for fault in _factor_faults(name, factor, over)]
    if any(isinstance(one, Same) and arrays.get(one.factor) is None for one in spec.factors.values()):
        return faults  # the modes of a copy are those of a factor that does not exist
    nodes = nodes_of(spec.factors)
    terms = [t for t in terms_of(spec.terms, nodes) if {*t.nodes} <= {*nodes} and (t.nodes or not spec.terms)]
    faults += [
        f"term {str(term)!r}: always 0, since {nodes[name].factor!r}, whose starting value it has, starts at 0"
        for term in terms
        for name in term.nodes
        if nodes[name].at_start and arrays[nodes[name].factor].is_zero
    ]
    faults += [*_mode_faults(spec, axes, terms, nodes), *_size_faults(spec, axes, nodes)]
    is_known = len(terms) == max(len(spec.terms), 1)
    faults += [*_read_faults(arrays, axes, over), *_host_faults(arrays, axes, over)]
    faults += _magnitude_faults(spec, arrays, axes, over)
    outer = {*over, *(mode for axis in axes for mode in axis)}
    likes = {mode: rule.mode for mode, rule in spec.sizes.items() if isinstance(rule, SizeRule) and rule.kind == "like"}
    update = Sum(terms, nodes, arrays, outer, tied_bonds(arrays, nodes, likes, outer))
    return faults + (_start_faults(spec.start, update) if is_known else [])


def _name_faults(spec: Table, axes: tuple[Axis, ...]) -> list[str]:
    outer = [*(mode for axis in axes for mode in axis), *modes_of(spec.over)]
    inner = [mode for factor in spec.factors.values() for mode in factor.modes or ()]
    named = {"spec": [spec.name], "factor": list(spec.factors), "mode": list(dict.fromkeys([*outer, *inner]))}
    faults = [
        f"{what} {name!r}: expected an identifier as its name{_hint(what, name)}"
        for what, names in named.items()
        for name in names
        if not name.isidentifier()
    ]
    faults += [f"mode {mode!r}: occurs twice in weight and over" for mode, times in Counter(outer).items() if times > 1]
    hidden = (name for name in spec.factors if name.startswith("_"))
    faults += [f"factor {name!r}: expected a name that does not begin with '_'" for name in hidden]
    if axes and "in" in axes[0] and any("out" in axis for axis in axes[1:]):
        faults.append(f'weight: expected the out axis first, as in "out in", got {spec.weight!r}')
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


def _copy_faults(spec: Table, arrays: Mapping[str, Factor], over: Modes) -> list[str]:
    faults = []
    for name, one in spec.factors.items():
        if isinstance(one, Factor):
            continue
        source = arrays.get(one.factor)
        if source is None:
            reason = "which is a copy itself; name its factor" if one.factor in spec.factors else "which does not exist"
            faults.append(f"factor {name!r}: expected the name of a factor to use again, got {one.factor!r}, {reason}")
        elif one.modes is not None and len(one.modes) != len(source.modes):
            faults.append(
                f"factor {name!r}: expected {len(source.modes)} modes, as {one.factor!r} has, got {len(one.modes)}"
            )
        elif one.modes is not None:
            pairs = zip(one.modes, source.modes, strict=True)
            faults += [
                f"factor {name!r}: expected the site mode {mine if mine in over else own!r} in its place, as in "
                f"{one.factor!r}; only other modes can be renamed"
                for mine, own in pairs
                if mine != own and {mine, own} & {*over}
            ]
            faults += [f"factor {name!r}: mode {mode!r} occurs twice" for mode in _repeated(one.modes)]
    return faults


def _term_faults(spec: Table) -> list[str]:
    faults, used = [], set()
    for term in spec.terms:
        _, names = words_of(term)
        used |= {*names}
        if not names:
            faults.append(f"term {term!r}: expected the names of factors, got none")
        faults += [f"term {term!r}: {name!r} is no factor" for name in names if name not in spec.factors]
        faults += [
            f"term {term!r}: {name!r} occurs twice; give it a second name with same({name!r})"
            for name in _repeated(names)
        ]
    if spec.terms:
        read = used | {one.factor for name in used if isinstance(one := spec.factors.get(name), Same)}
        inside = nodes_of({name: one for name, one in spec.factors.items() if isinstance(one, Factor)})
        faults += [
            f"factor {name!r}: in no term"
            for name, one in spec.factors.items()
            if name not in read and (isinstance(one, Same) or name in inside)
        ]
    return faults


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]


def _factor_faults(name: str, factor: Factor, over: Modes) -> list[str]:
    faults = [f"mode {mode!r} occurs twice" for mode in _repeated(factor.modes)]
    if len(factor.modes) > MOST_AXES:
        faults.append(f"expected at most {MOST_AXES} modes, as many as an array can have axes, got {len(factor.modes)}")
    faults += [*factor.init.faults(), *_map_faults(factor, over)]
    if factor.shared and {*factor.modes} & {*over}:
        faults.append("shared: expected no site mode, since every site reads a shared factor alike")
    if factor.shared and (factor.init.is_read or factor.init.is_pattern):
        faults.append(f"shared: expected an initializer that is drawn, got {factor.init.kind}")
    return [f"factor {name!r}: {fault}" for fault in faults]


def _mode_faults(spec: Table, axes: tuple[Axis, ...], terms: Sequence[Term], nodes: Mapping[str, Node]) -> list[str]:
    weight, over = [mode for axis in axes for mode in axis], modes_of(spec.over)
    outer, faults = {*weight, *over}, []
    for term in terms:
        where = f"term {str(term)!r}: " if spec.terms else ""
        carried = Counter(mode for name in term.nodes for mode in dict.fromkeys(nodes[name].modes))
        faults += [f"{where}weight mode {mode!r}: no factor has it" for mode in weight if mode not in carried]
        faults += [
            f"{where}bond {mode!r}: in one factor only; a mode that is neither in the weight {spec.weight!r} "
            f"nor in over={spec.over!r} must join two"
            for mode, times in carried.items()
            if mode not in outer and times == 1
        ]
    known = {*outer, *(mode for node in nodes.values() for mode in node.modes)}
    for name, factor in arrays_of(spec.factors).items():
        faults += [
            f"factor {name!r}: its fan names the unknown mode {mode!r}" for mode in factor.init.fan if mode not in known
        ]
    return faults


def _size_faults(spec: Table, axes: tuple[Axis, ...], nodes: Mapping[str, Node]) -> list[str]:
    weight, over = [mode for axis in axes for mode in axis], modes_of(spec.over)
    outer = {*weight, *over}
    bonds = dict.fromkeys(mode for node in nodes.values() for mode in node.modes if mode not in outer)
    faults = spec.scale.faults()
    if spec.scale.over_bond and spec.scale.bond not in bonds:
        faults.append(f"scale: unknown mode {spec.scale.bond!r}; the bonds are {', '.join(bonds) or 'none'}")
    short = {mode for one in arrays_of(spec.factors).values() if one.init.is_host for mode in one.modes} & {*bonds}
    faults += [
        f"sizes: expected no rule for {mode!r}, the bond of the host's SVD, whose length follows from the weight"
        for mode in spec.sizes
        if mode in short
    ]
    for mode, rule in spec.sizes.items():
        if isinstance(rule, int):
            if mode not in (*weight, *bonds):
                faults.append(f"sizes: expected a bond or a mode of the weight, got {mode!r}")
            if rule < 1:
                faults.append(f"sizes: expected a size of at least 1 for {mode!r}, got {rule}")
        elif rule.kind == "required" and mode not in weight:
            faults.append(f"sizes: expected a mode of the weight as required, got {mode!r}")
        elif rule.kind == "at_most" and (mode not in bonds or rule.mode not in weight):
            faults.append(
                f"sizes: expected a bond that is at most a mode of the weight, got {mode!r} and {rule.mode!r}"
            )
        elif rule.kind == "like" and (mode not in bonds or rule.mode not in (*weight, *over)):
            faults.append(
                f"sizes: expected a bond like a mode of the weight or the sites, got {mode!r} and {rule.mode!r}"
            )
    return faults


def _map_faults(factor: Factor, over: Modes) -> list[str]:
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


def _read_faults(arrays: Mapping[str, Factor], axes: tuple[Axis, ...], over: Modes) -> list[str]:
    """Find factors whose starting values are read from the host's weights, but whose modes do not allow it."""
    weight = {mode for axis in axes for mode in axis}
    outer = {*weight, *over}
    tubes = {mode for factor in arrays.values() if factor.init.kind == "cyclic" for mode in factor.modes} - outer
    faults = []
    for name, factor in arrays.items():
        kind, bonds = factor.init.kind, [mode for mode in factor.modes if mode not in outer]
        if kind == "cyclic" and not factor.modes:
            faults.append(f"factor {name!r}: cyclic needs at least one mode")
        own = tuple(mode for mode in factor.modes if mode not in over)
        if kind == "rotary" and (len(own) != 3 or own != factor.modes[-3:]):  # noqa: PLR2004
            faults.append(f"factor {name!r}: rotary needs a position, a row and a column as its last modes")
        if kind == "svd" and (len(bonds) != 1 or not weight & {*factor.modes}):
            faults.append(f"factor {name!r}: svd needs one bond and a mode of the weight")
        if kind in ("t_svd", "tensor_cur") and (
            len(over) != 1 or len(tubes & {*bonds}) != 1 or {*over} & {*factor.modes}
        ):
            faults.append(f"factor {name!r}: {kind} needs one site mode, and one bond that a cyclic factor joins to it")
    cores = sorted(name for name, factor in arrays.items() if factor.init.kind == "tt_svd")
    for one, other in pairwise(cores):
        if len({*arrays[one].modes} & {*arrays[other].modes} - outer) != 1:
            faults.append(
                f"factors {one!r} and {other!r}: cores must share one bond with the next core in order of name"
            )
    if cores and sorted(weight) != sorted(mode for name in cores for mode in arrays[name].modes if mode in weight):
        faults.append("tt_svd: its cores must carry every mode of the weight once")
    return faults


def _host_faults(arrays: Mapping[str, Factor], axes: tuple[Axis, ...], over: Modes) -> list[str]:
    """Find factors that are the host's weight, or a part of its SVD, but do not have its modes."""
    outs, ins = tuple(mode for axis in axes[:1] for mode in axis), tuple(mode for axis in axes[1:] for mode in axis)
    outer, faults = {*outs, *ins, *over}, []
    for name, factor in arrays.items():
        if not factor.init.is_host:
            continue
        if factor.trainable:
            faults.append(f"factor {name!r}: expected the host's weight to be frozen; the host is not trained")
        bond = next((mode for mode in factor.modes if mode not in outer), "k")
        wanted = {
            "host": (*outs, *ins),
            "host_mask": (*outs, *ins),
            "host_left": (*outs, bond),
            "host_values": (bond,),
            "host_right": (bond, *ins),
        }[factor.init.kind]
        if factor.modes != wanted:
            faults.append(f"factor {name!r}: expected the modes {' '.join(wanted)!r} for {factor.init.kind}, in order")
    ranks = {mode for factor in arrays.values() if factor.init.is_host for mode in factor.modes if mode not in outer}
    if len(ranks) > 1:
        faults.append(f"host: expected one bond of the SVD of a weight, got {', '.join(sorted(ranks))}")
    return faults


def _magnitude_faults(spec: Table, arrays: Mapping[str, Factor], axes: tuple[Axis, ...], over: Modes) -> list[str]:
    """Find magnitudes that are not one number for each row of each weight, or that are used as another factor is."""
    names = [name for name, factor in arrays.items() if factor.init.is_magnitude]
    wanted = (*over, *(mode for axis in axes[:1] for mode in axis))
    faults = [f"magnitude: expected one, got {' and '.join(names)}"] if len(names) > 1 else []
    for name in names:
        factor = arrays[name]
        if not factor.trainable or factor.map or factor.shared:
            faults.append(f"factor {name!r}: expected a magnitude that is trained, without a map and not shared")
        if factor.modes != wanted:
            faults.append(f"factor {name!r}: expected the modes {' '.join(wanted)!r} for a magnitude, in order")
        copies = [other for other, one in spec.factors.items() if isinstance(one, Same) and one.factor == name]
        faults += [
            f"factor {other!r}: expected a copy of a factor in a term, got one of a magnitude" for other in copies
        ]
        faults += [
            f"term {term!r}: expected no magnitude, since it multiplies the weight with its update; leave out {name!r}"
            for term in spec.terms
            if name in words_of(term)[1]
        ]
    return faults


def _start_faults(start: object, update: Sum) -> list[str]:
    trained = [name for name, factor in update.factors.items() if factor.trainable]
    if not trained:
        return ["nothing is trainable"]
    used = [update.nodes[name] for term in update.terms for name in term.nodes]
    moved, fixed = ({node.factor for node in used if node.at_start == at_start} for at_start in (False, True))
    if idle := [name for name in trained if name in fixed - moved]:
        return [
            f"factor {name!r}: trainable, but only its starting values are in a term; make it frozen" for name in idle
        ]
    if start == "zero" and not update.starts_at_zero:
        return [
            "the update does not start at 0: give one trainable factor of each term zeros(), "
            'or write start="centered" or start="free"'
        ]
    if start == "zero":
        return _gradient_faults(update)
    living = {name: replace(one, init=ones()) if one.is_zero else one for name, one in update.factors.items()}
    return _gradient_faults(replace(update, factors=living))


def _gradient_faults(update: Sum) -> list[str]:
    if update.moving:
        return []
    if any(replace(update, terms=[term]).moving for term in update.terms):
        return [
            "the terms cancel at the start, so that no factor ever gets a gradient; change a sign or a factor of one"
        ]
    zero = [name for name, factor in update.factors.items() if factor.is_zero]
    if len(zero) == 1 and not update.factors[zero[0]].trainable:
        return [f"{zero[0]} starts at 0 and is frozen, so that the update stays 0; make it trainable"]
    begin = f"{' and '.join(zero)} {'all start' if len(zero) > 1 else 'starts'}" if zero else "all terms start"
    return [f"{begin} at 0, so that no factor ever gets a gradient; let only one factor of a term start at 0"]
