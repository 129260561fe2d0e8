"""Any function of a tree of weights, with the updates added to what its weights are multiplied with."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from tnadapt import Adapter, SiteError
from tnadapt.binding import answers, expect_adapter, mistake, told
from tnadapt_jax._leaf import Leaves, check_leaves, expect_leaves, is_typed, of_task, path_of
from tnadapt_jax._params import Params, check_params
from tnadapt_jax._walk import Log, Weight, dense_all, view_of, walk

__all__ = ["Explained", "adapt", "explain"]

Answer = TypeVar("Answer")
P = ParamSpec("P")
DENSE = ("allow", "refuse")


@dataclass(frozen=True)
class Explained:
    """How each adapted leaf is used: its path -> what was done, such as "activations", how often.

    "dW: gather" says that the update was made as a matrix for this operation, and "dW in bfloat16: gather" that the
    sum was rounded to this dtype, in which a small update is lost. A leaf of which nothing is said is never read.
    """

    uses: Mapping[str, Mapping[str, int]]

    @property
    def dense(self) -> tuple[str, ...]:
        """The paths of the leaves whose update is made as a matrix somewhere."""
        return tuple(path for path, uses in self.uses.items() if any(what.startswith("dW") for what in uses))

    def __str__(self) -> str:
        """Return one line per leaf."""
        width = max(map(len, self.uses), default=0)
        told = {
            path: ", ".join(what if what.startswith("dW") and n == 1 else f"{what} x{n}" for what, n in uses.items())
            for path, uses in self.uses.items()
        }
        return "\n".join(f"{path:{width}}  {text or 'never read'}" for path, text in told.items())


@answers(SiteError)
def adapt(
    apply_fn: Callable[Concatenate[Any, P], Answer],
    adapter: Adapter,
    leaves: Leaves,
    *,
    task: str | None = None,
    dense: str = "allow",
) -> Callable[Concatenate[Params, Any, P], Answer]:
    """Return the function (params, weights, *args, **kwargs) -> apply_fn(weights with the updates, *args, **kwargs).

    The function is traced once, and its weights are followed: where one is multiplied with activations, the update of
    the activations is added to the product, as `apply` makes it. Loops, scans over stacked layers, branches and
    checkpoints are followed as well. Where something else happens to a weight, its update is made as a matrix there;
    `explain` says where. Call it in jit: outside, each call traces anew.

    Args:
        apply_fn: a model as a function of its weights and further arguments. It must be one that jax can trace.
        adapter: a spec bound to sites.
        leaves: the result of `find_sites` for the weights.
        task: the task whose sites are used, if the adapter has several.
        dense: "allow", or "refuse" to raise where an update would be made as a matrix.

    Raises:
        SiteError: for arguments of other types. The function itself raises it for params, leaves or weights that do
            not fit the adapter, for an answer that is no array, and where `dense` is "refuse".
    """
    run = _adapted(apply_fn, adapter, leaves, task, dense)

    def adapted(params: Params, weights: Any, /, *args: P.args, **kwargs: P.kwargs) -> Answer:
        return run(Counter(), params, weights, args, kwargs)  # type: ignore[no-any-return]

    return adapted


@answers(SiteError)
def explain(
    apply_fn: Callable[Concatenate[Any, P], Any], adapter: Adapter, leaves: Leaves, *, task: str | None = None
) -> Callable[Concatenate[Params, Any, P], Explained]:
    """Return the function (params, weights, *args, **kwargs) that says how `adapt` uses each leaf. Nothing is computed.

    Args:
        apply_fn: as for `adapt`.
        adapter: as for `adapt`.
        leaves: as for `adapt`.
        task: as for `adapt`.

    Raises:
        SiteError: as for `adapt`.
    """
    run = _adapted(apply_fn, adapter, leaves, task, "allow")

    def explained(params: Params, weights: Any, /, *args: P.args, **kwargs: P.kwargs) -> Explained:
        log: Log = Counter()
        held, rest = _parted((params, weights, args, kwargs))
        jax.eval_shape(lambda arrays: run(log, *rest(arrays)), held)
        paths = dict.fromkeys(leaf.path for leaf in leaves.entries)
        return Explained({path: {what: n for (where, what), n in log.items() if where == path} for path in paths})

    return explained


def _adapted(
    apply_fn: Callable[..., Any], adapter: Adapter, leaves: Leaves, task: str | None, dense: str
) -> Callable[..., Any]:
    """Return the function (log, params, weights, args, kwargs) that `adapt` returns."""
    if not callable(apply_fn):
        todo = "The model's function comes first: adapt(apply_fn, adapter, leaves)."
        raise mistake(SiteError, "adapt", "a function of (weights, ...)", told(apply_fn), todo)
    expect_adapter(adapter, "adapt")
    expect_leaves(leaves, "adapt")
    if dense not in DENSE:
        todo = 'Write dense="refuse" to raise where an update would be made as a matrix.'
        raise mistake(SiteError, "adapt", 'dense="allow" or dense="refuse"', told(dense), todo)

    def run(log: Log, params: Params, weights: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        check_params(adapter, params)
        found = of_task(check_leaves(adapter, leaves, weights), task)
        known: dict[str, jax.Array] = {}

        def viewed(path: tuple[Any, ...], leaf: Any) -> Any:
            name = path_of(path)
            if name not in found:
                return leaf
            view = view_of(adapter, tuple(found[name]))
            return view.weight(adapter, params, jnp.asarray(leaf), log, known, refuses=dense == "refuse")

        arrays, rest = _parted((weights, args, kwargs))
        shapes: list[Any] = []

        def traced(arrays: list[Any]) -> list[Any]:
            weights, args, kwargs = rest(arrays)
            flat, tree = jax.tree.flatten(_expect_arrays(apply_fn(weights, *args, **kwargs)))
            shapes.append(tree)
            return flat

        closed = jax.make_jaxpr(traced)(arrays)
        inputs, _ = _parted((jax.tree_util.tree_map_with_path(viewed, weights), args, kwargs))
        outputs = dense_all(walk(closed, inputs), "left the function")
        return jax.tree.unflatten(shapes[-1], outputs)

    return run


def _is_weight(value: Any) -> bool:
    return isinstance(value, Weight)


def _parted(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """Return the arrays of a tree, and the function that puts arrays back among everything else in it."""
    flat, structure = jax.tree.flatten(tree, is_leaf=_is_weight)
    is_array = [is_typed(one) or _is_weight(one) for one in flat]
    arrays = [one for one, held in zip(flat, is_array, strict=True) if held]

    def put_back(arrays: list[Any]) -> Any:
        own = iter(arrays)
        return jax.tree.unflatten(
            structure, [next(own) if held else one for one, held in zip(flat, is_array, strict=True)]
        )

    return arrays, put_back


def _expect_arrays(answer: Any) -> Any:
    """Raise SiteError unless an answer consists of arrays and numbers."""
    for path, one in jax.tree_util.tree_leaves_with_path(answer):
        if not is_typed(one) and not isinstance(one, bool | int | float | complex):
            where = path_of(path)
            raise mistake(
                SiteError,
                "adapt",
                "a function whose answer consists of arrays",
                f"{told(one)}{' at ' + where if where else ''}",
                "Return arrays, or give the other values another way.",
            )
    return answer
