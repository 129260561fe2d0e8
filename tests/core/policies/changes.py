"""What the tests of changes of bonds share: updates before and after, bonds of many adapters, a chain of factors."""

from collections.abc import Iterator, Mapping

import numpy as np

from tnadapt import Adapter, AdapterSpec, delta, grid, normal, over_rank, trainable, zeros
from tnadapt.policies import bonds
from tnadapt.testing import gradients

SITES = grid(layers=3, kinds={"q": (5, 4), "k": (5, 4)})
Arrays = dict[str, np.ndarray]


def chain(over: str = "layer kind") -> AdapterSpec:
    """A tensor train through out, both site modes and in, whose scale moves with its second bond."""
    layer, kind = (f"{mode} " if mode in over.split() else "" for mode in ("layer", "kind"))
    return AdapterSpec(
        name="chain",
        weight="out in",
        over=over,
        factors={
            "A": trainable("out p", init=normal()),
            "B": trainable(f"p {layer}q", init=normal()),
            "C": trainable(f"q {kind}r", init=zeros()),
            "D": trainable("r in", init=normal()),
        },
        scale=over_rank("q", alpha=6.0),
    )


def updates(adapter: Adapter, params: Mapping[str, np.ndarray]) -> Arrays:
    """The dense update of every site."""
    return {site.path: delta(adapter, params, site) for site in adapter.sites}


def distance(one: Arrays, other: Arrays) -> float:
    """The largest difference of two sets of updates."""
    return max(float(np.abs(one[path] - other[path]).max()) for path in one)


def size(adapter: Adapter, params: Mapping[str, np.ndarray]) -> float:
    """The sum of the absolute terms of the largest entry of an update: what its rounding is relative to."""
    from tnadapt.testing._oracle import rounding_size

    return max(rounding_size(adapter, params, site) for site in adapter.sites) or 1.0


def pulls(adapter: Adapter, seed: int = 0) -> Arrays:
    """A random gradient with respect to the update of each site."""
    random = np.random.default_rng(seed)
    return {site.path: random.standard_normal(site.shape) for site in adapter.sites}


def gradients_of(adapter: Adapter, params: Mapping[str, np.ndarray], seed: int = 0) -> Arrays:
    """The gradients of a loss whose gradients with respect to the updates are random."""
    return gradients(adapter, dict(params), pulls(adapter, seed))


def served(adapter: Adapter, operation: str) -> Iterator[str]:
    """The bonds that an operation serves: of each mode one, since groups are alike, and an adapter has many."""
    seen = set()
    for name, reason in bonds(adapter, operation).items():
        mode = name.rpartition(".")[2]
        if reason == "ok" and mode not in seen:
            seen.add(mode)
            yield name


def norm(one: Arrays) -> float:
    """The Frobenius norm of all updates together."""
    return float(np.sqrt(sum((value**2).sum() for value in one.values())))
