"""Which sites are trained in a link: all of them, or a random subset; the others stay at their zero start."""

import numpy as np

from tnadapt import Adapter, SiteError
from tnadapt_torch._state import AdapterState

__all__: list[str] = []


def check_choosable(adapter: Adapter, number: int) -> None:
    """Raise SiteError unless every trained factor belongs to one weight, and this many weights can be chosen."""
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= len(adapter.weights):
        raise SiteError(f"sites: expected a number of weights from 1 to {len(adapter.weights)}, got {number!r}.")
    owners: dict[str, str] = {}
    for path, name in _trained(adapter):
        if (other := owners.setdefault(name, path)) != path:
            raise SiteError(
                f"sites: expected a spec that trains each weight by itself, got {adapter.spec.name}, where {other} and "
                f"{path} share {name}.\nA factor that is shared cannot be frozen for some of its weights. Use lora."
            )


def choose(state: AdapterState, number: int, seed: int) -> list[str]:
    """Train the factors of this many weights, drawn by the seed, and freeze the others. Return the paths."""
    paths = sorted(state.adapter.weights)
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, len(paths)])))
    chosen = {paths[place] for place in random.permutation(len(paths))[:number]}
    params = state.params()
    for path, name in _trained(state.adapter):
        params[name].requires_grad_(path in chosen)
    return sorted(chosen)


def _trained(adapter: Adapter) -> list[tuple[str, str]]:
    """Return the pairs of a weight and a trained factor that its update reads."""
    pairs = {
        (site.weight, part.name)
        for site in adapter.sites
        for part in adapter.address(site).parts.values()
        if part.factor.trainable and not part.at_start
    }
    return sorted(pairs)
