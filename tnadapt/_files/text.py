"""Write specs and adapters as JSON text, and read them. Nothing in a text is trusted: every key and type is checked."""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from tnadapt._errors import FormatError, TnadaptError
from tnadapt._files import upgrade
from tnadapt._files.limits import (
    SITES,
    UNNAMED,
    WORD,
    check_asked,
    check_binding,
    check_coordinate,
    check_factors,
    check_pattern,
    check_spec,
    keep,
    shorten,
)
from tnadapt._files.plain import dump, parse, take, typed
from tnadapt._frozen import FrozenMap
from tnadapt._hosts import RUNNING, Block, Coordinate, Site, as_integers
from tnadapt._language import HUGE, TINY, Adapter, AdapterSpec, Factor, Initializer, Same, Scale, SizeRule, modes_of
from tnadapt._signature import mistake, told

__all__ = ["from_json", "to_json"]

VERSION, OLD = 2, 1
NUMBER = {"power": (int, float), "share": (int, float)}


def to_json(value: AdapterSpec | Adapter) -> str:
    """Return the text of a spec or an adapter, on one line. Raises FormatError for one above the limits of a file."""
    if not isinstance(value, AdapterSpec | Adapter):
        raise mistake(
            FormatError, "to_json", "an AdapterSpec or an Adapter", told(value), "Call the family, or bind it."
        )
    data = {"spec": spec_data(value)} if isinstance(value, AdapterSpec) else adapter_data(value)
    return dump({"format": VERSION} | data)


def from_json(text: str) -> AdapterSpec | Adapter:
    """Read the spec or the adapter that `to_json` wrote. Raises FormatError for any other text."""
    if not isinstance(text, str | bytes):
        raise mistake(FormatError, "from_json", "a text that to_json wrote", told(text), "Pass the text of the file.")
    data = parse(text)
    version = take_version("the text", data)
    return spec_of(data.pop("spec"), version) if data.keys() == {"spec"} else adapter_of(data, version)


def take_version(where: str, data: dict[str, Any]) -> int:
    """Take the format version out of the fields. Raises FormatError for one that this release does not read."""
    version = data.pop("format", None)
    if type(version) is not int or version not in (OLD, VERSION):
        raise FormatError(
            f"{where}: expected format {OLD} or {VERSION}, which this release reads, got format "
            f"{reprlib.repr(version)}."
        )
    return version


def spec_data(spec: AdapterSpec) -> dict[str, Any]:
    """Return a spec as plain data."""
    data: dict[str, Any] = {
        "name": spec.name,
        "weight": spec.weight,
        "over": spec.over,
        "factors": {name: _factor_data(factor) for name, factor in spec.factors.items()},
        "scale": asdict(spec.scale),
        "sizes": {mode: _rule_data(rule) for mode, rule in spec.sizes.items()},
        "start": spec.start,
    }
    data |= {"terms": list(spec.terms)} if spec.terms else {}
    check_spec(data)
    return data


def _factor_data(factor: Factor | Same) -> dict[str, Any]:
    if isinstance(factor, Same):
        data: dict[str, Any] = {"same": factor.factor} | ({"at_start": True} if factor.at_start else {})
        return data | ({} if factor.modes is None else {"modes": " ".join(factor.modes)})
    data = {"modes": " ".join(factor.modes), "trainable": factor.trainable, "init": _initializer_data(factor.init)}
    return data | ({"map": factor.map} if factor.map else {}) | ({"shared": True} if factor.shared else {})


def _initializer_data(init: Initializer) -> dict[str, Any]:
    data: dict[str, Any] = {"kind": init.kind, "amount": init.amount, "fan": " ".join(init.fan)}
    return data | ({"power": init.power} if init.power else {}) | ({"share": init.share} if init.share else {})


def _rule_data(rule: SizeRule | int) -> int | str | dict[str, str]:
    if isinstance(rule, int):
        return rule
    return {rule.kind: rule.mode} if rule.mode else rule.kind


def spec_of(data: object, version: int = VERSION) -> AdapterSpec:
    """Make a spec from plain data. Raises FormatError for unknown keys, wrong types, or an invalid spec."""
    kinds = {"name": str, "weight": str, "over": str, "factors": dict, "scale": dict, "sizes": dict, "start": str}
    if version == OLD:
        fields = take("spec", data, upgrade.SPEC, upgrade.MORE)
        for word in ("caps", "ties"):
            for bond, mode in fields.get(word, {}).items():
                typed(f"{word}.{bond}", mode, str)
        fields = upgrade.upgrade_spec(fields)
    else:
        fields = take("spec", data, kinds, {"terms": list})
    check_factors(fields["factors"])
    fields["scale"] = take("scale", fields["scale"], {"rule": str, "alpha": (int, float), "bond": str})
    read = _old_factor_fields if version == OLD else _factor_fields
    fields["factors"] = {name: read(name, factor) for name, factor in fields["factors"].items()}
    for number, term in enumerate(fields.get("terms", [])):
        typed(f"terms[{number}]", term, str)
    check_spec(fields)
    fields["sizes"] = {mode: _rule_of(mode, rule) for mode, rule in fields["sizes"].items()}
    factors = {name: _factor_of(factor) for name, factor in fields["factors"].items()}
    try:
        return AdapterSpec(**(fields | {"factors": factors, "scale": Scale(**fields["scale"])}))
    except TnadaptError as error:
        raise FormatError(f"the text: expected a valid spec, got an invalid one.\n{shorten(error)}") from error


def _factor_fields(name: str, data: object) -> dict[str, Any]:
    where = f"factor {name}"
    if isinstance(data, dict) and "same" in data:
        return take(where, data, {"same": str}, {"modes": str, "at_start": bool})
    fields = take(where, data, {"modes": str, "trainable": bool, "init": dict}, {"map": str, "shared": bool})
    init = take(f"{where}: init", fields["init"], {"kind": str, "amount": (int, float), "fan": str}, NUMBER)
    return fields | {"init": init}


def _old_factor_fields(name: str, data: object) -> dict[str, Any]:
    where = f"factor {name}"
    fields = take(where, data, upgrade.FACTOR, {"map": str})
    init = take(f"{where}: init", fields["init"], upgrade.INITIALIZER, {"power": (int, float)})
    if init["law"] in upgrade.KINDS.values():
        raise FormatError(f"{where}: expected an initializer of format {OLD}, got {init['law']!r}.")
    return fields | {"init": upgrade.upgrade_initializer(init)}


def _factor_of(fields: Mapping[str, Any]) -> Factor | Same:
    if "same" in fields:
        modes = modes_of(fields["modes"]) if "modes" in fields else None
        return Same(fields["same"], modes, fields.get("at_start", False))
    init = fields["init"]
    initializer = Initializer(
        init["kind"], init["amount"], modes_of(init["fan"]), init.get("power", 0.0), init.get("share", 0.0)
    )
    map_name, is_shared = fields.get("map", ""), fields.get("shared", False)
    return Factor(modes_of(fields["modes"]), initializer, fields["trainable"], map_name, is_shared)


def _rule_of(mode: str, data: object) -> SizeRule | int:
    match data:
        case "required":
            return SizeRule("required")
        case {"like": str(other), **rest} if not rest:
            return SizeRule("like", other)
        case {"at_most": str(other), **rest} if not rest:
            return SizeRule("at_most", other)
        case int() if not isinstance(data, bool):
            return data
        case _:
            raise FormatError(f"sizes.{mode:.60}: expected a size or a rule for one, got {reprlib.repr(data)}.")


def adapter_data(adapter: Adapter) -> dict[str, Any]:
    """Return an adapter as plain data. Each site is stored as the number of a path pattern, and its layer."""
    patterns: dict[str, int] = {}
    places = []
    check_asked(adapter.rank, adapter.sizes, adapter.seed)
    check_binding(adapter.spec, adapter.sites, adapter.sizes)
    for site in adapter.sites:
        pattern, layer = _pattern(site)
        check_coordinate(f"the layer of {site.path[:WORD]}", layer)
        places.append([patterns.setdefault(dump(pattern), len(patterns)), layer])
    rank = dict(adapter.rank) if isinstance(adapter.rank, Mapping) else adapter.rank
    plain = [json.loads(pattern) for pattern in patterns]
    for pattern in plain:
        check_pattern(pattern)
    data = {
        "spec": spec_data(adapter.spec),
        "patterns": plain,
        "sites": places,
        "rank": rank,
        "sizes": dict(adapter.sizes),
        "seed": adapter.seed,
    }
    if adapter.spec.scale.is_unit:  # beside its rule, so that another formula cannot change the numbers
        data["scales"] = {group.name: group.network.scale for group in adapter.groups}
    return data


def _pattern(site: Site) -> tuple[dict[str, Any], Coordinate]:
    """Return what a site has in common with the same site in other layers, and its layer.

    The path is split at the layer's number. The kind is left out if it follows from the path.
    """
    others = dict(site.coordinates)
    layer = others.pop("layer")
    path = _cut(site.path, layer)
    if others["kind"] == _kind_of(path):
        del others["kind"]
    pattern: dict[str, Any] = {"path": path, "shape": site.shape, "coordinates": others}
    if (block := site.block) is not None:
        pattern["block"] = {"weight": _cut(block.weight, layer), "shape": block.shape, "start": block.start}
    return pattern, layer


def _cut(path: str, layer: Coordinate) -> list[str]:
    words = path.split(".")
    if words.count(str(layer)) != 1:
        return [path]
    place = words.index(str(layer))
    return [".".join([*words[:place], ""]), ".".join(["", *words[place + 1 :]])]


def _kind_of(path: list[str]) -> str:
    return path[-1].removeprefix(".")


def adapter_of(data: object, version: int = VERSION, arrays: int | None = None) -> Adapter:
    """Make an adapter from plain data.

    `arrays` is how many arrays there are for its factors, if that is known. Raises FormatError for unknown keys, wrong
    types, or an invalid adapter, and at once for one whose sites need many times as many arrays.
    """
    kinds = {"spec": dict, "patterns": list, "sites": list, "rank": (int, dict, type(None)), "sizes": dict, "seed": int}
    fields = take("adapter", data, kinds, {"scales": dict})
    rank, sizes, seed = (fields[word] for word in ("rank", "sizes", "seed"))
    for word in ("patterns", "sites"):
        keep("the text", word, len(fields[word]), SITES)
    check_asked(rank, sizes, seed)
    spec = spec_of(fields["spec"], version)
    if arrays is not None:
        keep("the text", "arrays for its sites", _least_arrays(spec, fields["sites"]), UNNAMED * (1 + arrays))
    patterns = [_pattern_of(pattern) for pattern in fields["patterns"]]
    try:
        sites = tuple(_site_of(patterns, place) for place in fields["sites"])
        check_binding(spec, sites, sizes)
        # not by `bind`, which refuses ranks that earlier releases ignored
        adapter = Adapter(spec=spec, sites=sites, rank=as_integers(rank), sizes=as_integers(sizes), seed=seed)
        return _with_scales(adapter, fields.get("scales"))
    except TnadaptError as error:
        raise FormatError(f"the text: expected a valid adapter, got an invalid one.\n{shorten(error)}") from error


def _with_scales(adapter: Adapter, scales: Mapping[str, Any] | None) -> Adapter:
    """Return the adapter with the numbers that a file holds for its scale. Raises FormatError unless all are there."""
    groups = {group.name: group.network.scale for group in adapter.groups}
    wanted = groups.keys() if adapter.spec.scale.is_unit else None
    if (None if scales is None else scales.keys()) != wanted:
        many = "a number for each group, since the scale is unit" if wanted else "none, since its rule is another"
        raise FormatError(f"scales: expected {many}, got {'none' if scales is None else reprlib.repr(list(scales))}.")
    for name, value in (scales or {}).items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not TINY <= abs(value) <= HUGE:
            what = f"a number of {TINY:g} to {HUGE:g} in size"
            raise FormatError(f"scales.{name:.60}: expected {what}, got {reprlib.repr(value)}.")
        if (value < 0) != (adapter.spec.scale.alpha < 0):
            what = f"the sign of alpha, which is {adapter.spec.scale.alpha:g}"
            raise FormatError(f"scales.{name:.60}: expected {what}, got {reprlib.repr(value)}.")
    others = {name: float(value) for name, value in (scales or {}).items() if value != groups[name]}
    return replace(adapter, scales=FrozenMap(others)) if others else adapter


def _least_arrays(spec: AdapterSpec, places: list[Any]) -> int:
    """Return how many arrays the sites of an adapter need at least, before any of them is made.

    Without a site mode, each site has a group of its own; if the layers are not stacked, each layer has at least one.
    """
    if not spec.over:
        groups = len(places)
    elif "layer" in spec.site_modes or RUNNING in spec.site_modes:
        groups = 1
    else:
        layers = (place[-1] for place in places if isinstance(place, list) and place)
        groups = len({layer for layer in layers if isinstance(layer, int | str)})
    return groups * sum(not spec.is_global(name) for name in spec.arrays)


def _site_of(patterns: list[dict[str, Any]], place: object) -> Site:
    match place:
        case [int(number), int() | str() as layer] if not isinstance(number, bool) and 0 <= number < len(patterns):
            check_coordinate("sites", layer)
            pattern = patterns[number]
            path, block = str(layer).join(pattern["path"]), pattern.get("block")
            given = {"layer": layer} | pattern["coordinates"]
            return Site(path, pattern["shape"], given, block and _block_of(block, layer))
        case _:
            raise FormatError(f"sites: expected [pattern, layer], got {reprlib.repr(place)}.")


def _pattern_of(data: object) -> dict[str, Any]:
    pattern = take("pattern", data, {"path": list, "shape": list, "coordinates": dict}, {"block": dict})
    block = pattern.get("block")
    paths = [pattern["path"]]
    if block is not None:
        take("block", block, {"weight": list, "shape": list, "start": list})
        paths.append(block["weight"])
    is_cut = all(len(path) in (1, 2) and all(isinstance(part, str) for part in path) for path in paths)
    if not is_cut or "layer" in pattern["coordinates"]:
        raise FormatError(f"pattern: expected a path of one or two strings and no layer, got {reprlib.repr(pattern)}.")
    check_pattern(pattern)
    kind = {"kind": _kind_of(pattern["path"])}
    return pattern | {"shape": tuple(pattern["shape"]), "coordinates": kind | pattern["coordinates"]}


def _block_of(block: Mapping[str, Any], layer: Coordinate) -> Block:
    return Block(str(layer).join(block["weight"]), tuple(block["shape"]), tuple(block["start"]))
