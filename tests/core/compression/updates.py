"""What the tests of compression share: random updates, and errors by their definition."""

import math
from itertools import pairwise

import numpy as np

from tnadapt import (
    delta,
)
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
    """By the definition, from dense updates."""
    whole = dense_of(updates)
    missed = {site: np.linalg.norm(delta(found.adapter, found.params, site) - one) for site, one in whole.items()}
    return np.linalg.norm(list(missed.values())) / np.linalg.norm([np.linalg.norm(one) for one in whole.values()])


def falls(found):
    return all(now <= before for errors in found.history.values() for before, now in pairwise(errors))
