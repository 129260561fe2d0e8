"""Shared by the tests of compression: random updates, a problem of one network, and errors by their definition."""

import math
from itertools import pairwise

import numpy as np

from tnadapt import delta, init
from tnadapt._compression.least_squares import Problem
from tnadapt._compression.updates import terms_of
from tnadapt.binding import LoRA


def random_updates(sites, *, rank, seed=0):
    random = np.random.default_rng(seed)
    return {
        site: LoRA(
            A=random.standard_normal((rank, math.prod(site.shape[1:]))),
            B=random.standard_normal((site.shape[0], rank)),
            scale=0.5,
        )
        for site in sites
    }


def dense_of(updates):
    return {
        site: one.scale * (one.B @ one.A).reshape(site.shape) if isinstance(one, LoRA) else one
        for site, one in updates.items()
    }


def relative_error(updates, found):
    """Return the relative error by its definition, from dense updates."""
    whole = dense_of(updates)
    missed = {site: np.linalg.norm(delta(found.adapter, found.params, site) - one) for site, one in whole.items()}
    return np.linalg.norm(list(missed.values())) / np.linalg.norm([np.linalg.norm(one) for one in whole.values()])


def falls(found):
    return all(now <= before for errors in found.history.values() for before, now in pairwise(errors))


def problem_of(adapter, updates):
    """Return the problem of an adapter with one network, and its starting factors by name."""
    (group,) = adapter.groups
    network = group.network
    presence = np.zeros([network.sizes[mode] for mode in network.over])
    for site in group.sites:
        presence[tuple(group.index(site).values())] = 1.0
    return Problem(network, terms_of(group, updates), (), presence), init(adapter)


def squared_error(adapter, factors, updates):
    """Return the squared norm of the residual, from dense updates."""
    return sum(np.sum((delta(adapter, factors, site) - one) ** 2) for site, one in dense_of(updates).items())
