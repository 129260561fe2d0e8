"""How a law says what it expects, and what the laws make again of an adapter."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tnadapt._errors import LawError
from tnadapt._hosts import Site
from tnadapt._language import Adapter, AdapterSpec

__all__: list[str] = []

CLOSE = 1e-10  # for float64, of the size of the terms that are summed


def expect(holds: bool, what: str) -> None:
    """Raises LawError with these words unless it holds."""
    if not holds:
        raise LawError(what)


def expect_close(found: npt.ArrayLike, wanted: npt.ArrayLike, what: str, size: float) -> None:
    """Raises LawError where an entry is off by more than 1e-10 of `size`, that of the terms it is summed from."""
    one, two = np.asarray(found), np.asarray(wanted)
    expect(one.shape == two.shape, f"{what}: has shape {one.shape}, wanted {two.shape}")
    error = float(np.abs(one - two).max(initial=0.0))
    expect(error <= CLOSE * size, f"{what}: off by {error:.3g}, where terms have the size {size:.3g}")


def some_site(adapter: Adapter, random: np.random.Generator) -> Site:
    """One of the sites."""
    return adapter.sites[int(random.integers(len(adapter.sites)))]


def same_spec(spec: AdapterSpec, order: list[str]) -> AdapterSpec:
    """The spec made again from its parts, its factors in this order."""
    return replace(spec, factors={name: replace(spec.factors[name]) for name in order})


def bind_again(spec: AdapterSpec, adapter: Adapter, alpha: float | None = None) -> Adapter:
    """A spec bound as the adapter was."""
    return spec.bind(
        adapter.sites,
        rank=adapter.rank,
        sizes=adapter.sizes,
        seed=adapter.seed,
        alpha=alpha,
        overparametrized=True,
    )
