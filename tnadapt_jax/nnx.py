"""Flax nnx: a model and its adapter as one module, with the factors as variables. Needs the extra `nnx`."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from tnadapt import Adapter, SiteError
from tnadapt.binding import Rule, SpecLike, answers, extra, mistake, spec_of, told
from tnadapt.initializers import Scale
from tnadapt_jax._adapt import Explained, adapt, explain
from tnadapt_jax._find import LayerAxis, find_sites
from tnadapt_jax._leaf import Leaves, check_leaves, expect_leaves, of_task
from tnadapt_jax._params import Params, check_params, init
from tnadapt_jax._rates import rate_labels as labels_of_rates

with extra("nnx", "tnadapt_jax.nnx"):
    from flax import nnx

__all__ = ["Adapted", "AdapterParam", "FrozenFactor", "attach", "rate_labels"]

Path = tuple[Any, ...]


class AdapterParam(nnx.LoRAParam[Array]):
    """A trainable factor, which `nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)` trains."""


class FrozenFactor(nnx.Variable[Array]):
    """A frozen factor or a starting value. It is not an nnx.Param, so filters for nnx.Param skip it."""


class Adapted(nnx.Module):
    """A model with an adapter, called like the model. Each factor is stored once, in `trainable` or `frozen`.

    A call adds each update to the activations, as `tnadapt_jax.adapt` does; it traces the model, so call it in
    `nnx.jit`. Variables that the model changes (statistics, counts of random streams, caches) are changed in the model,
    except for the adapted weights, which no call changes. `eval()` and `train()` set the modes of the model.
    """

    def __init__(self, model: nnx.Module, adapter: Adapter, leaves: Leaves, params: Params) -> None:
        """Args: the model, the adapter, the leaves of its sites in the model's nnx.Param, and its params."""
        self.model = model
        self.adapter = adapter
        self.leaves = leaves
        task = next((site.coordinates.get("task") for site in adapter.sites), None)
        self.task = None if task is None else str(task)
        self.trainable = nnx.Dict({name: AdapterParam(value) for name, value in params["trainable"].items()})
        self.frozen = nnx.Dict({name: FrozenFactor(value) for name, value in params["frozen"].items()})

    def params(self) -> dict[str, dict[str, Array]]:
        """Return the factors as params for the pure functions."""
        trees: dict[str, Any] = {"trainable": self.trainable, "frozen": self.frozen}
        return {  # nnx.capture puts attributes of its own into every module
            tree: {name: held[...] for name, held in part.items() if isinstance(held, AdapterParam | FrozenFactor)}
            for tree, part in trees.items()
        }

    def set_task(self, task: str) -> None:
        """Use the sites of this task from now on; at first, those of the first task. Raises SiteError if unknown."""
        of_task(check_leaves(self.adapter, self.leaves, weights_of(self.model)), task)
        self.task = task

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with the updates added to its weights."""
        return self.call("__call__", *args, **kwargs)

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the model by name, with the updates added to its weights.

        Raises SiteError if the model has no such method, if the answer does not consist of arrays, or if the call
        changes more of the model than its variables.
        """
        call = _Call(self, method, args, kwargs)
        run = adapt(call.run, self.adapter, self.leaves, task=self.task)
        answer, changed = run(self.params(), call.weights, call.rest)
        call.put_back(changed)
        return answer

    def explain(self, *args: Any, method: str = "__call__", **kwargs: Any) -> Explained:
        """Say how a call uses each adapted weight. Nothing is computed or changed.

        An argument may be a `jax.ShapeDtypeStruct` in place of an array, and the model may be one of `nnx.eval_shape`.
        """
        tree: Any
        flat, tree = jax.tree.flatten((args, kwargs), is_leaf=lambda one: isinstance(one, nnx.Pytree | nnx.Variable))
        abstract = {n: one for n, one in enumerate(flat) if isinstance(one, jax.ShapeDtypeStruct)}
        found: list[Explained] = []

        def explained(arrays: Mapping[int, Array]) -> None:
            args, kwargs = tree.unflatten([arrays.get(n, one) for n, one in enumerate(flat)])
            call = _Call(self, method, args, kwargs)
            run = explain(call.run, self.adapter, self.leaves, task=self.task)
            found.append(run(self.params(), call.weights, call.rest))

        jax.eval_shape(explained, abstract)
        return found[0]


class _Call:
    """One call of a model as a function of arrays: of the adapted weights, and of all others that it may read.

    What the model changes is part of the answer, since a variable of the model itself cannot be changed while the
    function is traced. The model and its arguments are one graph, since they can share variables, such as nnx.Rngs.
    """

    def __init__(self, adapted: Adapted, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if not callable(getattr(adapted.model, method, None)):
            raise mistake(SiteError, "call", f"a method of {type(adapted.model).__name__}", repr(method), "")
        self.method = method
        self.node = (adapted.model, tuple(args), dict(kwargs))
        self.graph, state = nnx.split(self.node)
        self.held: dict[Path, Any] = dict(nnx.to_flat_state(state))
        weights = (path for path, one in self.held.items() if path[0] == 0 and isinstance(one, nnx.Param))
        named = {path: ".".join(map(str, path[1:])) for path in weights}
        adapted_paths = {leaf.path for leaf in adapted.leaves.entries}
        self.names = {path: name for path, name in named.items() if name in adapted_paths}
        self.weights = {name: _value(self.held[path]) for path, name in self.names.items()}
        self.rest = [_value(one) for path, one in self.held.items() if path not in self.names]
        self.after = self.graph
        self.changed: dict[Path, Any] = {}

    def run(self, weights: Mapping[str, Any], rest: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Return the answer, and the values of all variables that were changed or made, in the order of `changed`."""
        others = iter(rest)
        given = {path: weights[self.names[path]] if path in self.names else next(others) for path in self.held}
        state = nnx.from_flat_state({path: _with_value(self.held[path], value) for path, value in given.items()})
        copied = nnx.merge(self.graph, state)
        model, args, kwargs = copied
        answer = getattr(model, self.method)(*args, **kwargs)
        self.after, state = nnx.split(copied)
        self.changed = {
            path: one
            for path, one in nnx.to_flat_state(state)
            if path not in self.names and not (path in given and _is_same(_value(one), given[path]))
        }
        return answer, [_value(one) for one in self.changed.values()]

    def put_back(self, values: Sequence[Any]) -> None:
        """Give the model's own variables the values that `run` returned."""
        made: dict[Path, Any] = {}
        for (path, one), value in zip(self.changed.items(), values, strict=True):
            if isinstance(own := self.held.get(path), nnx.Variable):
                own.set_raw_value(value)
            else:
                made[path] = _with_value(one, value)
        try:
            if made:
                nnx.update(self.node, nnx.from_flat_state(made))
            is_whole = nnx.graphdef(self.node) == self.after
        except (IndexError, ValueError):  # flax cannot put it there, such as one more element of a list
            is_whole = False
        if not is_whole:
            todo = "Make the change on the model itself, outside of the call."
            raise mistake(SiteError, "call", "a call that changes variables alone", "one that changes attributes", todo)


def _value(one: Any) -> Any:
    return one.get_raw_value() if isinstance(one, nnx.Variable) else one


def _with_value(one: Any, value: Any) -> Any:
    return one.replace(value) if isinstance(one, nnx.Variable) else value


def _is_same(value: Any, given: Any) -> bool:
    """Return whether two trees consist of the same arrays."""
    one, other = jax.tree.leaves(value), jax.tree.leaves(given)
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


@answers(SiteError)
def attach(
    model: nnx.Module,
    spec: SpecLike | Adapter,
    *,
    leaves: Leaves | None = None,
    params: Params | None = None,
    target: Rule | None = None,
    layout: str | Mapping[str, str] | None = None,
    layer_axis: LayerAxis = None,
    blocks: Mapping[str, tuple[int, ...]] | None = None,
    fused: Mapping[str, Sequence[str | None] | Mapping[str, int]] | None = None,
    tasks: Collection[str] = (),
    rank: int | Mapping[str, int] | None = None,
    alpha: float | None = None,
    scale: Scale | float | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int | None = None,
    dtype: DTypeLike | None = None,
    overparametrized: bool = False,
) -> Adapted:
    """Return a module that holds the model and an adapter. With a new one, it computes the same as the model.

    Args:
        model: the host.
        spec: a spec, a family or the name of a family, such as "lotr"; or an adapter, such as `load` returns.
        leaves: the result of `find_sites` for the model's nnx.Param, instead of the next six arguments.
        params: the params of an adapter, such as `load` returns; by default starting values.
        target: as for `find_sites`.
        layout: as for `find_sites`; by default "nnx".
        layer_axis: as for `find_sites`.
        blocks: as for `find_sites`.
        fused: as for `find_sites`.
        tasks: as for `find_sites`. The first one is used until `set_task` is called.
        rank: as for `AdapterSpec.bind`, and only for a spec, as are the others that `bind` takes.
        alpha: as for `AdapterSpec.bind`.
        scale: as for `AdapterSpec.bind`.
        sizes: as for `AdapterSpec.bind`.
        seed: as for `AdapterSpec.bind`; by default 0.
        dtype: the dtype of starting values; by default float32.
        overparametrized: as for `AdapterSpec.bind`.

    Raises:
        SiteError: if the target matches nothing, the spec or the params do not fit, or arguments contradict each other.
    """
    if not isinstance(model, nnx.Module):
        todo = "The model comes first: attach(model, spec, target=[...])."
        raise mistake(SiteError, "attach", "an nnx.Module as its first argument", told(model), todo)
    own = spec if isinstance(spec, Adapter) else spec_of(spec, "attach")
    finding = {"target": target, "layout": layout, "layer_axis": layer_axis, "blocks": blocks, "fused": fused}
    binding = {"rank": rank, "alpha": alpha, "scale": scale, "sizes": sizes, "seed": seed}
    if leaves is not None:
        expect_leaves(leaves, "attach")
        _expect_none("leaves", finding | {"tasks": tasks or None})
    if isinstance(own, Adapter):
        _expect_none("an adapter", binding | {"overparametrized": overparametrized or None})
    elif params is not None:
        todo = "Bind the spec, or load the adapter, and pass it with its params."
        raise mistake(SiteError, "attach", "params with their adapter", f"params with {told(spec)}", todo)
    if params is not None:
        _expect_none("params", {"dtype": dtype})
    weights = weights_of(model)
    found = leaves or _found(model, finding | {"layout": layout or "nnx", "tasks": tasks})
    bound: dict[str, Any] = binding | {"seed": seed or 0, "overparametrized": overparametrized}
    adapter = own if isinstance(own, Adapter) else own.bind(found.sites, **bound)
    check_leaves(adapter, found, weights)
    if params is None:
        read = found.read(weights) if adapter.reads_weights else None
        params = init(adapter, dtype=jnp.float32 if dtype is None else dtype, weights=read)
    check_params(adapter, params)
    return Adapted(model, adapter, found, params)


def _expect_none(given: str, others: Mapping[str, Any]) -> None:
    """Raise SiteError if something is given beside what makes it meaningless."""
    if beside := [name for name, value in others.items() if value is not None]:
        todo = f"Leave out {beside[0]}, or what it contradicts."
        raise mistake(SiteError, "attach", f"{given} without {beside[0]}", "both", todo)


def _found(model: nnx.Module, finding: Mapping[str, Any]) -> Leaves:
    """Return the result of find_sites with these arguments. An error says which weights have several paths."""
    try:
        return find_sites(weights_of(model), **finding)
    except SiteError as error:
        if not (shared := _shared(model)):
            raise
        raise SiteError(f"{error}\nShared by modules: {shared}.") from None


def _shared(model: nnx.Module) -> str:
    """Return which weights and modules have further paths in the model; the first path is that of their sites."""
    found = nnx.find_duplicates(model, only=lambda path, value: isinstance(value, nnx.Param | nnx.Module))
    paths = [[".".join(map(str, path)) for path in some] for some in found]
    return ", ".join(f"{other} is {first}" for first, *others in paths for other in others)


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
