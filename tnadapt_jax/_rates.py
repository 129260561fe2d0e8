"""Learning rates in balance with the first step, as labels for the transformations of optax."""

from collections.abc import Mapping

import numpy.typing as npt

from tnadapt import Adapter, SiteError
from tnadapt.binding import answers, balanced_rates, expect_adapter
from tnadapt_jax._params import Params, expect_trees

__all__ = ["rate_labels"]


@answers(SiteError)
def rate_labels(adapter: Adapter, params: Params | None = None) -> tuple[dict[str, str], dict[str, float]]:
    """Return a label for each trained array, and for each label the multiple of the learning rate that it needs.

    The multiples are the `rates` of `step_size`: 1 for factors that move first, and a rate in proportion to the size of
    the starting values for the others. Pass both to `optax.multi_transform`:

        labels, rates = rate_labels(adapter)
        parts = {label: optax.adamw(lr * rate, weight_decay=decay / rate) for label, rate in rates.items()}
        optimizer = optax.multi_transform(parts, labels)

    AdamW shrinks an array by its rate times the weight decay, so that the latter is divided by the multiple.

    Args:
        adapter: a spec bound to sites.
        params: the params at the start, where their values are read from the host. The others are not looked at.

    Returns:
        ({name: label}, {label: multiple}); the first has the structure of params["trainable"]. A label is the name of
        a factor, or of the first of its arrays with this multiple if there are several.

    Raises:
        SiteError: starting values are read from the host, and params are missing or lack them.
    """
    expect_adapter(adapter, "rate_labels")
    values: Mapping[str, npt.ArrayLike] | None = None
    if params is not None:
        expect_trees(params)
        values = {name: value for tree in params.values() for name, value in tree.items()}
    parts = balanced_rates(adapter, values)
    labels = {name: label for label, part in parts.items() for name in part.names}
    return labels, {label: part.rate for label, part in parts.items()}
