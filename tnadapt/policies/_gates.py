"""A trained number for each site, and the choice of the sites that matter: our reading of DiffoRA."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError, SpecError
from tnadapt._language import Adapter, AdapterSpec, expect_adapter, expect_params, ones, trainable, words_of
from tnadapt._signature import answers, mistake, told
from tnadapt.policies._checks import expect_count

__all__ = ["gated", "select"]

GATE = "gate"


@answers(SpecError)
def gated(spec: AdapterSpec) -> AdapterSpec:
    """Multiply the update of each site by a trained number, which starts at 1.

    It is a factor "gate" over the site modes in every term; a spec without site modes gets one number for each weight.

    Raises:
        SpecError: the argument is no spec, or has a factor of that name.
    """
    if not isinstance(spec, AdapterSpec):
        raise mistake(SpecError, "gated", "a spec", told(spec), "Write gated(AdapterSpec(...)), or call the family.")
    if GATE in spec.factors:
        raise SpecError(spec.name, ["gated: expected a spec without a factor 'gate', got one that has it"])
    factors = {**spec.factors, GATE: trainable(" ".join(spec.site_modes), init=ones())}
    terms = [f"{'- ' if words_of(term)[0] < 0 else ''}{' '.join((*words_of(term)[1], GATE))}" for term in spec.terms]
    return replace(spec, name=f"{spec.name}_gated", factors=factors, terms=terms)


@answers(SiteError)
def select(
    adapter: Adapter,
    params: Mapping[str, npt.ArrayLike],
    keep: int,
    gradients: Mapping[str, npt.ArrayLike] | None = None,
) -> tuple[str, ...]:
    """Return the paths of the sites to keep, in the order of the adapter: pass them as `target_modules` or as sites.

    Without gradients the sites of the largest gates stay, |g|; with them those whose update the loss depends on most,
    |g dL/dg|, which is |<dW, dL/dW>| of the site. DiffoRA selects modules by a trained matrix of layers and modules
    (arXiv:2502.08905). Only its abstract could be read, so that this is our reading, not its algorithm.

    Args:
        adapter: an adapter of a spec that `gated` returned.
        params: its arrays by name.
        keep: how many sites stay.
        gradients: those of the loss with respect to the gates, in their shapes; others may be there.

    Raises:
        SiteError: the spec has no gate, `keep` is not from 1 to the number of sites, or a gradient is missing.
    """
    adapter = expect_adapter(adapter, "select")
    given = expect_params(params, "select")
    if GATE not in adapter.spec.arrays:
        raise SiteError(f"select: expected an adapter of gated(spec), got one of {adapter.spec.name}, without a gate.")
    if expect_count(keep, "select", "keep", 1) > len(adapter.sites):
        raise SiteError(f"select: expected at most the {len(adapter.sites)} sites to stay, got {keep}.")
    scores = {}
    for site in adapter.sites:
        group, _ = adapter.find(site)
        name = adapter.slot_name(group, GATE)
        index = tuple(group.index(site)[mode] for mode in adapter.spec.site_modes)
        value = _entry(given, name, index, "the array")
        scores[site.path] = abs(value if gradients is None else value * _entry(gradients, name, index, "the gradient"))
    order = sorted(scores, key=lambda path: -scores[path])  # a stable order: equal scores keep the first sites
    chosen = {*order[:keep]}
    return tuple(site.path for site in adapter.sites if site.path in chosen)


def _entry(arrays: Mapping[str, npt.ArrayLike], name: str, index: tuple[int, ...], what: str) -> float:
    if name not in arrays or arrays[name] is None:
        raise SiteError(f"select: expected {what} of {name!r}, got none.")
    value = float(np.asarray(arrays[name], dtype=np.float64)[index])
    if not np.isfinite(value):
        raise SiteError(f"select: expected finite gates, got {value} in {what} of {name!r}.")
    return value
