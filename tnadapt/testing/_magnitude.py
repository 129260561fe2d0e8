"""Laws of magnitudes: what they set, and that all other laws hold for the sum of the terms below them."""

from collections.abc import Callable
from functools import wraps

import numpy as np

from tnadapt._language import Adapter, host_entry, without_magnitude
from tnadapt._values import delta
from tnadapt.testing._expect import expect_close, some_site
from tnadapt.testing._oracle import dense, gradients, random_params, rounding_size

__all__: list[str] = []

Law = Callable[[Adapter, np.random.Generator], None]


def of_the_sum(law: Law) -> Law:
    """Make a law of sums of products hold for the sum below a magnitude."""

    @wraps(law)
    def holds(adapter: Adapter, random: np.random.Generator) -> None:
        law(without_magnitude(adapter), random)

    return holds


def magnitudes_set_lengths(adapter: Adapter, random: np.random.Generator) -> None:
    """With a magnitude m, row o of weight plus update has the length |m_o|, and the direction that it has without m.

    The gradient with respect to m is that of the weight along this direction; that of any other factor is its gradient
    in the sum of the terms, each row times m over the length of the row, which counts as a constant.
    """
    if not adapter.spec.magnitude:
        return
    params, site = random_params(adapter, random), some_site(adapter, random)
    address, below = adapter.address(site), without_magnitude(adapter)
    if address.magnitude is None:
        return
    part = address.magnitude.lengths
    host = np.reshape(params[host_entry(site)], (site.shape[0], -1))
    size = rounding_size(adapter, params, site)
    lengths = params[part.name][part.cut].reshape(-1, 1)
    rows = host + delta(adapter, params, site).reshape(host.shape)
    whole = host + dense(below, params, site).reshape(host.shape)
    norms = np.linalg.norm(whole, axis=1, keepdims=True)
    expect_close(rows * norms, lengths * whole, f"rows of {site.path}", size * float(norms.max()))
    pull = random.standard_normal(site.shape)
    found = gradients(adapter, params, {site.path: pull})
    flat = pull.reshape(host.shape)
    along = (flat * whole / norms).sum(axis=1)
    expect_close(
        found[part.name][part.cut].reshape(-1), along, f"gradient of {part.name}", float(np.abs(flat).sum(axis=1).max())
    )
    others = gradients(below, params, {site.path: (flat * lengths / norms).reshape(site.shape)})
    for name, gradient in others.items():
        largest = float(np.abs(gradient).max(initial=1.0))
        expect_close(found[name], gradient, f"gradient of {name}", 1e3 * largest)
