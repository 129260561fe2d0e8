"""Check the types of the arguments of a spec: no list in place of a string, no function that was not called."""

import math
from collections.abc import Iterator, Mapping
from typing import Protocol, get_args

from tnadapt._errors import SiteError
from tnadapt._hosts import as_number
from tnadapt._language.decomposition import Decomposition
from tnadapt._language.factor import Factor, Same, Start
from tnadapt._language.initializer import Initializer, call_of_initializer
from tnadapt._language.scale import Scale, raw
from tnadapt._language.sizes import SizeRule
from tnadapt._signature import mistake, told

__all__: list[str] = []

STARTS = get_args(Start)


class Given(Protocol):
    """The arguments of a spec before any check."""

    @property
    def name(self) -> object: ...
    @property
    def weight(self) -> object: ...
    @property
    def over(self) -> object: ...
    @property
    def factors(self) -> object: ...
    @property
    def scale(self) -> object: ...
    @property
    def terms(self) -> object: ...
    @property
    def sizes(self) -> object: ...
    @property
    def start(self) -> object: ...


def scale_of(given: object) -> object:
    """Return `raw` of a number, and any other value unchanged."""
    given = as_number(given)
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
    examples = {"name": "own", "weight": "out in", "over": "layer kind"}
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
        if isinstance(factor, Same):
            continue
        if not isinstance(factor, Factor):
            modes = factor if isinstance(factor, str) else "out r"
            yield f'factor {name!r}: expected a Factor, got {told(factor)}; write trainable("{modes}") or frozen(...)'
        elif not isinstance(factor.init, Initializer):
            todo = call_of_initializer(factor.init).removesuffix(".").replace("Write", "write")
            yield f"factor {name!r}: expected an initializer, got {told(factor.init)}; {todo}"


def _scale_faults(scale: object) -> Iterator[str]:
    if not isinstance(scale, Scale):
        yield f"scale: expected a Scale or a number, got {told(scale)}; write scale={_call_of(scale)}"


def _call_of(scale: object) -> str:
    """Return what to write instead of a function that was not called, or of a text, such as the command takes."""
    name, colon, alpha = (scale if isinstance(scale, str) else getattr(scale, "__name__", "")).partition(":")
    known = {"raw": "raw()", "unit": "unit()", "over_sqrt_rank": 'over_sqrt_rank("r")'}
    try:
        number = float(alpha if colon else name)
    except ValueError:
        return 'over_rank("r")' if colon else known.get(name, 'over_rank("r")')
    is_known = math.isfinite(number) and (not colon or name == "unit")
    return (f"unit({number})" if colon else str(number)) if is_known else 'over_rank("r")'


def _other_faults(spec: Given) -> Iterator[str]:
    if not isinstance(spec.start, Decomposition) and spec.start not in STARTS:
        known = ", ".join(map(repr, STARTS))
        yield f'start: expected one of {known}, got {told(spec.start)}; write start="centered" or start=svd("B", "A")'
    if not isinstance(spec.terms, list | tuple) or not all(isinstance(term, str) for term in spec.terms):
        text = spec.terms if isinstance(spec.terms, str) else "B A"
        yield f'terms: expected a list of strings, got {told(spec.terms)}; write terms=["{text}"]'
    if not isinstance(spec.sizes, Mapping):
        yield f'sizes: expected sizes by mode, got {told(spec.sizes)}; write sizes={{"r": at_most("in")}}'
        return
    for mode, rule in spec.sizes.items():
        if not isinstance(mode, str):
            yield f"sizes: expected strings as modes, got {told(mode)} among them; write 'r'"
        is_number = isinstance(rule, int) and not isinstance(rule, bool)
        if not is_number and not isinstance(rule, SizeRule):
            yield (
                f"sizes: expected a rule or a number for {mode!r}, got {told(rule)}; "
                'write like("layer"), at_most("in"), required() or 4'
            )
