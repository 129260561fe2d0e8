"""Flax nnx: a model and its adapter as one module, the factors in variables of their own. Needs the extra `nnx`."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from tnadapt import Adapter, SiteError
from tnadapt.binding import Rule, SpecLike, answers, mistake, spec_of, told
from tnadapt_jax._find import LayerAxis, find_sites
from tnadapt_jax._leaf import Leaves
from tnadapt_jax._merge import merge
from tnadapt_jax._params import init

__all__ = ["Adapted", "AdapterParam", "FrozenFactor", "attach"]


class AdapterParam(nnx.LoRAParam[Array]):
    """A trainable factor: what `nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)` trains."""


class FrozenFactor(nnx.Variable[Array]):
    """A frozen factor, or a starting value: no nnx.Param, so that no filter for those finds it."""


class Adapted(nnx.Module):
    """A model and its adapter, called as the model is. Each factor is held once, under `trainable` or `frozen`.

    At each call the updates are made as matrices and added to the weights, in float32 or better: it works for every
    module, and costs a copy of each adapted weight. Other variables that the model changes (statistics, the counts of
    random streams) are changed in it. Arguments go by position; modes are set on the model, as by `model.eval()`.
    """

    def __init__(self, model: nnx.Module, adapter: Adapter, leaves: Leaves, params: Mapping[str, Any]) -> None:
        """Args: the model, the adapter, where its sites lie in `weights_of(model)`, its params."""
        self.model = model
        self.adapter = adapter
        self.leaves = leaves
        self.trainable = nnx.Dict({name: AdapterParam(value) for name, value in params["trainable"].items()})
        self.frozen = nnx.Dict({name: FrozenFactor(value) for name, value in params["frozen"].items()})

    def params(self) -> dict[str, dict[str, Array]]:
        """The factors as the pure functions take them."""
        trees = {"trainable": self.trainable, "frozen": self.frozen}
        return {tree: {name: variable[...] for name, variable in part.items()} for tree, part in trees.items()}

    def __call__(self, *args: Any) -> Any:
        """What the model gives with the updates in its weights."""
        graph, weights, rest = nnx.split(self.model, nnx.Param, ...)  # type: ignore[misc]  # an overload that flax lacks
        pure = nnx.to_pure_dict(weights)
        nnx.replace_by_pure_dict(weights, merge(self.adapter, self.params(), pure, self.leaves))
        # `rest` is shared with the model, not copied: what the call changes there stays.
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
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    dtype: DTypeLike = jnp.float32,
    overparametrized: bool = False,
) -> Adapted:
    """A module that holds the model and a new adapter on it. Computes as the model does until it is trained.

    Args: as those of `find_sites` (over the model's nnx.Param), `AdapterSpec.bind` and `init`; `spec` may be a family,
    or the name of one, as "lotr".
    Raises SiteError for what does not match or fit.
    """
    if not isinstance(model, nnx.Module):
        todo = "The model comes first: attach(model, spec, target=[...])."
        raise mistake(SiteError, "attach", "an nnx.Module as its first argument", told(model), todo)
    own = spec_of(spec, "attach")
    leaves = find_sites(weights_of(model), target=target, layout=layout, layer_axis=layer_axis)
    adapter = own.bind(leaves.sites, rank=rank, sizes=sizes, alpha=alpha, seed=seed, overparametrized=overparametrized)
    weights = leaves.read(weights_of(model)) if adapter.reads_weights else None
    return Adapted(model, adapter, leaves, init(adapter, dtype=dtype, weights=weights))


def weights_of(model: nnx.Module) -> dict[str, Any]:
    """The values of a model's nnx.Param as a plain tree."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))
