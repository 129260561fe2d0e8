"""Joint starts: starting values of several factors that are the parts of one decomposition of the host's weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from tnadapt._errors import SpecError
from tnadapt._frozen import FrozenMap
from tnadapt._language.factor import Start
from tnadapt._language.initializer import Initializer, Read
from tnadapt._signature import answers, mistake, told

__all__ = ["Decomposition", "hosvd", "svd", "t_svd", "tensor_cur", "tt_svd"]

STARTS = get_args(Start)


@dataclass(frozen=True)
class Decomposition:
    """The initializers of the factors that a decomposition gives, by name, and how the update then starts."""

    inits: Mapping[str, Initializer]
    start: Start


@answers(SpecError)
def svd(
    left: str | None = None,
    right: str | None = None,
    *,
    powers: tuple[float, float] = (0.5, 0.5),
    scaled: bool = True,
    start: Start = "centered",
) -> Decomposition:
    """Start two factors at the leading singular vectors of the host's weights: left at U S^p, right at S^q V^T.

    The vectors run along the factors' modes of the weight. If a factor lacks a site mode, the weights along that mode
    are concatenated into one matrix, as in the HOSVD.

    Args:
        left: the factor with out modes; None if no factor has these vectors.
        right: the factor with in modes; None likewise.
        powers: p and q, each 0, 0.5 or 1.
        scaled: divide the singular values by the spec's scale, so that scale times the product is the principal part.
        start: what the spec's `start` would be: "centered" subtracts the update of the starting values.

    Raises:
        SpecError: a name is not a string, or a power or `start` is not one of these.
    """
    if not isinstance(powers, tuple | list) or len(powers) != 2:  # noqa: PLR2004
        raise mistake(SpecError, "svd", "two powers", told(powers), "Write powers=(0, 1).")
    named = {name: power for name, power in zip((left, right), powers, strict=True) if name is not None}
    _expect_names("svd", tuple(name for name in (left, right) if name is not None))
    inits = {name: Initializer("svd", 1.0, power=p, share=p if scaled else 0.0) for name, p in named.items()}
    return _decomposition("svd", inits, start)


@answers(SpecError)
def tt_svd(*cores: str, start: Start = "centered") -> Decomposition:
    """Start factors at the cores of the TT-SVD of the host's weights, computed by tensorly.

    The names are those of the cores from the first to the last, in alphabetical order.
    """
    _expect_names("tt_svd", cores)
    if list(cores) != sorted(cores):
        raise SpecError("tt_svd", [f"expected the cores in alphabetical order, got {', '.join(cores)}; rename them"])
    return _alike("tt_svd", "tt_svd", cores, start)


@answers(SpecError)
def hosvd(core: str, *sides: str, start: Start = "centered") -> Decomposition:
    """Start factors at the HOSVD of the host's weights: sides at singular vectors, the core at W contracted with them.

    The core is the weights contracted with all other factors of the spec.
    """
    _expect_names("hosvd", (core, *sides))
    inits = {core: Initializer("hosvd_core", 1.0)} | {side: Initializer("svd", 1.0) for side in sides}
    return _decomposition("hosvd", inits, start)


@answers(SpecError)
def t_svd(left: str, middle: str, right: str, *, start: Start = "centered") -> Decomposition:
    """Start three factors at the t-SVD of the host's weights along the sites (Kilmer and Martin 2011).

    Each has the bond that a `cyclic` factor joins to the sites.
    """
    return _alike("t_svd", "t_svd", (left, middle, right), start)


@answers(SpecError)
def tensor_cur(columns: str, middle: str, rows: str, *, start: Start = "centered") -> Decomposition:
    """Start three factors at columns, rows and the link between them, of the tensor CUR of the weights along the sites.

    Each has the bond that a `cyclic` factor joins to the sites.
    """
    return _alike("tensor_cur", "tensor_cur", (columns, middle, rows), start)


def _alike(where: str, kind: Read, names: tuple[str, ...], start: Start) -> Decomposition:
    _expect_names(where, names)
    return _decomposition(where, dict.fromkeys(names, Initializer(kind, 1.0)), start)


def _decomposition(where: str, inits: Mapping[str, Initializer], start: Start) -> Decomposition:
    if start not in STARTS:
        known = ", ".join(map(repr, STARTS))
        raise mistake(SpecError, where, f"one of {known} as start", told(start), 'Write start="centered".')
    return Decomposition(FrozenMap(inits), start)


def _expect_names(where: str, names: tuple[object, ...]) -> None:
    """Raise SpecError unless these are names, at least one and each once."""
    for name in names or (None,):
        if not isinstance(name, str):
            raise mistake(SpecError, where, "the names of factors", told(name), 'Write svd("B", "A").')
        if names.count(name) > 1:
            raise mistake(SpecError, where, "each factor once", f"{name!r} twice", 'Write svd("B", "A").')
