"""Flax nnx: a model and its adapter as one module, with the factors as variables. Needs the extra `nnx`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from tnadapt import Adapter, SiteError
from tnadapt.binding import Rule, SpecLike, answers, mistake, spec_of, told
from tnadapt.initializers import Scale
from tnadapt_jax._find import LayerAxis, find_sites
from tnadapt_jax._leaf import Leaves
from tnadapt_jax._merge import merge
from tnadapt_jax._params import init
from tnadapt_jax._rates import rate_labels as labels_of_rates

__all__ = ["Adapted", "AdapterParam", "FrozenFactor", "attach", "rate_labels"]


class AdapterParam(nnx.LoRAParam[Array]):
    """A trainable factor, which `nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)` trains."""


class FrozenFactor(nnx.Variable[Array]):
    """A frozen factor or a starting value. It is not an nnx.Param, so filters for nnx.Param skip it."""


class Adapted(nnx.Module):
    """A model with an adapter, called like the model. Each factor is stored once, in `trainable` or `frozen`.

    Each call computes the updates as matrices and adds them to the weights, in float32 or wider. This works for every
    module and costs a copy of each adapted weight. Other variables that the model changes (statistics, counts of random
    streams) are changed in the model. Pass arguments by position. Set modes on the model, as with `model.eval()`.
    """

    def __init__(self, model: nnx.Module, adapter: Adapter, leaves: Leaves, params: Mapping[str, Any]) -> None:
        """Args: the model, the adapter, the leaves of its sites in `weights_of(model)`, and its params."""
        self.model = model
        self.adapter = adapter
        self.leaves = leaves
        self.trainable = nnx.Dict({name: AdapterParam(value) for name, value in params["trainable"].items()})
        self.frozen = nnx.Dict({name: FrozenFactor(value) for name, value in params["frozen"].items()})

    def params(self) -> dict[str, dict[str, Array]]:
        """Return the factors as params for the pure functions."""
        trees = {"trainable": self.trainable, "frozen": self.frozen}
        return {tree: {name: variable[...] for name, variable in part.items()} for tree, part in trees.items()}

    def __call__(self, *args: Any) -> Any:
        """Call the model with the updates added to its weights."""
        graph, weights, rest = nnx.split(self.model, nnx.Param, ...)  # type: ignore[misc]  # an overload that flax lacks
        pure = nnx.to_pure_dict(weights)
        nnx.replace_by_pure_dict(weights, merge(self.adapter, self.params(), pure, self.leaves))
        # `rest` is shared with the model, not copied, so that changes made by the call persist.
        return nnx.merge(graph, weights, rest)(*args)


@answers(SiteError)
def attach(
    model: nnx.Module,
    spec: SpecLike,
    *,
    target: Rule,
    layout: str = "nnx",
    layer_axis: LayerAxis = None,
    rank: int | Mapping[str, int] | None = None,
    alpha: float | None = None,
    scale: Scale | float | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    dtype: DTypeLike = jnp.float32,
    overparametrized: bool = False,
) -> Adapted:
    """Return a module that holds the model and a new adapter. Until trained, it computes the same as the model.

    Args:
        model: the host.
        spec: a spec, a family or the name of a family, such as "lotr".
        target: as for `find_sites`, on the model's nnx.Param.
        layout: as for `find_sites`.
        layer_axis: as for `find_sites`.
        rank: as for `AdapterSpec.bind`.
        alpha: as for `AdapterSpec.bind`.
        scale: as for `AdapterSpec.bind`.
        sizes: as for `AdapterSpec.bind`.
        seed: as for `AdapterSpec.bind`.
        dtype: as for `init`.
        overparametrized: as for `AdapterSpec.bind`.

    Raises:
        SiteError: if the target matches nothing, or the spec does not fit.
    """
    if not isinstance(model, nnx.Module):
        todo = "The model comes first: attach(model, spec, target=[...])."
        raise mistake(SiteError, "attach", "an nnx.Module as its first argument", told(model), todo)
    own = spec_of(spec, "attach")
    leaves = find_sites(weights_of(model), target=target, layout=layout, layer_axis=layer_axis)
    adapter = own.bind(
        leaves.sites, rank=rank, sizes=sizes, alpha=alpha, scale=scale, seed=seed, overparametrized=overparametrized
    )
    weights = leaves.read(weights_of(model)) if adapter.reads_weights else None
    return Adapted(model, adapter, leaves, init(adapter, dtype=dtype, weights=weights))


def weights_of(model: nnx.Module) -> dict[str, Any]:
    """Return the values of a model's nnx.Param as a plain tree."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@answers(SiteError)
def rate_labels(adapted: Adapted) -> tuple[Callable[[Any], Any], dict[str, float]]:
    """Return what `tnadapt_jax.rate_labels` returns, with a function of the trained state in place of the labels.

    `optax.multi_transform` takes it as it takes labels. The optimizer's filter must select the factors alone, as
    wrt=AdapterParam does. Call it at the start if starting values are read from the host's weights. Raises SiteError
    for another module.
    """
    if not isinstance(adapted, Adapted):
        todo = "Pass the module that attach returned."
        raise mistake(SiteError, "rate_labels", "a module with an adapter", told(adapted), todo)
    labels, rates = labels_of_rates(adapted.adapter, adapted.params())

    def labels_of(state: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: labels[path[1].key], state)

    return labels_of, rates
