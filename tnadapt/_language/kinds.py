"""Check the types of the arguments of a spec: no list in place of a string, no function that was not called."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from tnadapt._errors import SiteError
from tnadapt._language.factor import Factor
from tnadapt._language.initializer import Initializer, call_of_initializer
from tnadapt._language.scale import Scale, raw
from tnadapt._signature import mistake, told

__all__: list[str] = []


class Given(Protocol):
    """The arguments of a spec before any check."""

    @property
    def name(self) -> object: ...
    @property
    def weight(self) -> object: ...
    @property
    def over(self) -> object: ...
    @property
    def given(self) -> object: ...
    @property
    def factors(self) -> object: ...
    @property
    def scale(self) -> object: ...
    @property
    def centered(self) -> object: ...
    @property
    def identity_at_start(self) -> object: ...
    @property
    def caps(self) -> object: ...
    @property
    def ties(self) -> object: ...


def scale_of(given: object) -> object:
    """Return `raw` of a number, and any other value unchanged."""
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    return raw(given) if is_number else given  # type: ignore[arg-type]  # a number, as checked above


def expect_sizes(given: object) -> Mapping[str, int]:
    """Return the sizes by mode, empty for None. Raises SiteError for anything else; each size is checked later."""
    if isinstance(given, Mapping | None):
        return given or {}
    raise mistake(SiteError, "bind", "sizes by mode", told(given), 'Write sizes={"head": 12}.')


def find_kind_faults(spec: Given) -> list[str]:
    """Find every argument of the wrong type. The other faults can be looked for only if there is none."""
    return [*_text_faults(spec), *_factor_faults(spec.factors), *_scale_faults(spec.scale), *_other_faults(spec)]


def _text_faults(spec: Given) -> Iterator[str]:
    examples = {"name": "own", "weight": "out in", "over": "layer kind", "given": "head"}
    for word, example in examples.items():
        value = getattr(spec, word)
        if not isinstance(value, str):
            is_listed = isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
            text = " ".join(value) if is_listed else example
            yield f'{word}: expected one string, got {told(value)}; write {word}="{text}"'


def _factor_faults(factors: object) -> Iterator[str]:
    if not isinstance(factors, Mapping):
        yield f'factors: expected factors by name, got {told(factors)}; write {{"A": trainable("r in"), ...}}'
        return
    for name, factor in factors.items():
        if not isinstance(name, str):
            yield f"factors: expected strings as names, got {told(name)} among them; write 'A'"
        if not isinstance(factor, Factor):
            modes = factor if isinstance(factor, str) else "out r"
            yield f'factor {name!r}: expected a Factor, got {told(factor)}; write trainable("{modes}") or frozen(...)'
        elif not isinstance(factor.init, Initializer):
            todo = call_of_initializer(factor.init).removesuffix(".").replace("Write", "write")
            yield f"factor {name!r}: expected an initializer, got {told(factor.init)}; {todo}"


def _scale_faults(scale: object) -> Iterator[str]:
    if not isinstance(scale, Scale):
        name = getattr(scale, "__name__", "")
        call = {"raw": "raw()", "over_sqrt_rank": 'over_sqrt_rank("r")'}.get(name, 'over_rank("r")')
        yield f"scale: expected a Scale or a number, got {told(scale)}; write scale={call}"


def _other_faults(spec: Given) -> Iterator[str]:
    for word in ("centered", "identity_at_start"):
        if not isinstance(value := getattr(spec, word), bool):
            yield f"{word}: expected True or False, got {told(value)}; write {word}={bool(value)}"
    for word in ("caps", "ties"):
        value = getattr(spec, word)
        is_named = isinstance(value, Mapping) and all(isinstance(one, str) for pair in value.items() for one in pair)
        if not is_named:
            shown = dict(value) if isinstance(value, Mapping) else value
            yield f'{word}: expected bond -> mode, got {shown!r:.60}; write {word}={{"r": "out"}}'
