"""The expectations of laws, which raise LawError, and the rebuilding of specs and adapters for comparison."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tnadapt._errors import LawError
from tnadapt._hosts import Site
from tnadapt._language import Adapter, AdapterSpec

__all__: list[str] = []

CLOSE = 1e-10  # in float64, relative to the size of the summed terms


def expect(holds: bool, what: str) -> None:
    """Raise LawError with the text `what` unless `holds`."""
    if not holds:
        raise LawError(what)


def expect_close(found: npt.ArrayLike, wanted: npt.ArrayLike, what: str, size: float) -> None:
    """Raise LawError unless all entries agree up to 1e-10 of `size`, the size of the terms that are summed."""
    one, two = np.asarray(found), np.asarray(wanted)
    expect(one.shape == two.shape, f"{what}: expected shape {two.shape}, got {one.shape}")
    error = float(np.abs(one - two).max(initial=0.0))
    expect(error <= CLOSE * size, f"{what}: expected an error of at most {CLOSE * size:.3g}, got {error:.3g}")


def some_site(adapter: Adapter, random: np.random.Generator) -> Site:
    """Return a random site of the adapter."""
    return adapter.sites[int(random.integers(len(adapter.sites)))]


def same_spec(spec: AdapterSpec, order: list[str]) -> AdapterSpec:
    """Return the spec rebuilt from its parts, with its factors in this order."""
    return replace(spec, factors={name: replace(spec.factors[name]) for name in order})


def bind_again(spec: AdapterSpec, adapter: Adapter, alpha: float | None = None) -> Adapter:
    """Bind a spec to the sites, ranks, sizes and seed of an adapter."""
    return spec.bind(
        adapter.sites,
        rank=adapter.rank,
        sizes=adapter.sizes,
        seed=adapter.seed,
        alpha=alpha,
        overparametrized=True,
    )
