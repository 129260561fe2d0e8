"""Magnitudes: the lengths of the rows of a weight with its update, as they start and as they are set."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError
from tnadapt._language import Adapter, host_entry
from tnadapt._values.host_starts import HostReader
from tnadapt._values.reference import row_norms, sum_at

__all__: list[str] = []

Array = npt.NDArray[np.float64]


def read_magnitudes(
    adapter: Adapter, params: Mapping[str, Array], weights: Mapping[str, npt.ArrayLike] | None
) -> dict[str, Array]:
    """Return the starting values of the magnitudes of all groups, by name: the lengths of the rows of W + dW.

    `params` has those of all other factors. A site that a grid lacks has ones, which no update reads.
    Raises SiteError for a weight that is missing, has the wrong shape, or is not finite.
    """
    name = adapter.spec.magnitude
    if not name:
        return {}
    if weights is None:
        raise SiteError(
            f"{adapter.spec.name}: expected the host's weights to read the start of {name} from, got none.\n"
            "Pass init(adapter, weights), with a mapping from paths to arrays (out, in)."
        )
    found: dict[str, Array] = {}
    reader = HostReader(adapter, weights)
    kinds = sorted({factor.init.kind for factor in adapter.spec.hosts.values()} | {"host"})
    for group in adapter.groups:
        key = adapter.slot_name(group, name)
        found[key] = np.ones(adapter.slots[key].shape)
        for site in group.sites:
            hosts = {host_entry(site, kind): reader.read(host_entry(site, kind)) for kind in kinds}
            host = hosts[host_entry(site)]
            if not np.isfinite(host).all():
                raise SiteError(f"{site.path}: expected finite host weights to read {name} from, got NaN or infinity.")
            address = adapter.address(site)
            start = 0.0 if adapter.spec.start != "free" else sum_at(adapter, {**params, **hosts}, address)
            if address.magnitude is not None:
                cut = address.magnitude.lengths.cut
                found[key][cut] = row_norms(host + start).reshape(found[key][cut].shape)
    return found
