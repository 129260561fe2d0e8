"""Apply a change of bonds to an attached adapter and to its optimizer: the same parameters, with other shapes."""

import gc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tnadapt import SiteError
from tnadapt.binding import answers, mistake, told
from tnadapt.policies import Change
from tnadapt_torch._run import BlocksUpdate
from tnadapt_torch._sharded import is_sharded
from tnadapt_torch._state.factors import Factors, leaf_of, plant, start_of, to_numpy
from tnadapt_torch._state.known import check_apart
from tnadapt_torch._state.updates import make_updates

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []

SQUARED = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")  # what torch's optimizers call means of squares
STEPS = ("acc_delta",)  # means of squares of steps, which another basis changes otherwise than those of gradients
PARTS = ("row_var", "col_var")  # of a factor, whose shapes a rank of 1 hides
COUNTS = ("step", "eta", "mu", "mu_product")  # numbers, which have the shape of a scalar factor
Array = npt.NDArray[np.generic]


class Resizable(nn.Module):
    """The part of an adapter's state that changes the sizes of bonds."""

    def arrays(self) -> dict[str, Array]:
        """Return copies of all factors as arrays, for the functions of `tnadapt.policies`. bfloat16 becomes float32."""
        state = cast("AdapterState", self)
        return {name: to_numpy(value) for name, value in state.params().items()}

    def gradients(self) -> dict[str, Array]:
        """Return copies of the gradients of the trained factors. Those without one are left out."""
        known = cast("AdapterState", self).params()
        return {name: to_numpy(value.grad) for name, value in known.items() if value.grad is not None}

    @answers(SiteError)
    def resize(self, change: Change, optimizer: torch.optim.Optimizer | None) -> None:
        """Apply a change of bonds, made from `self.adapter` and `self.arrays()`, by `grow` and others.

        The parameters stay the same objects, with other values and shapes and without gradients, so that an optimizer
        goes on with them. Of its state, tensors of a parameter's shape are carried by the change: padded, cut, or
        brought to another basis; others, such as the number of steps, are kept. Call it after `optimizer.step()`.

        Args:
            change: what `grow`, `cut` or `sweep` of `tnadapt.policies` returned.
            optimizer: the optimizer of these parameters; None if there is none, or if it is made again after this. One
                that has state and is not passed would go on with moments of other shapes or of another basis.

        Raises:
            SiteError: the change is not one of this adapter; the adapter is merged or detached; its factors are held
                by other libraries: sharded, offloaded, or known to DistributedDataParallel; or the optimizer lacks a
                factor that changes and requires a gradient, or its state has other shapes than these. Nothing is
                changed then.
        """
        state = cast("AdapterState", self)
        check_change(state, change)
        check_whole(state)
        _apply(state, change, {} if optimizer is None else _moments(optimizer, change, state.params()))


def _apply(state: "AdapterState", change: Change, moments: Mapping[tuple[str, str], tuple[Tensor, Any]]) -> None:
    known = state.params()
    values = {name: _tensor(change.params[name], known[name]) for name in change.adapter.slots}
    hosts = {name: value for name, value in state.start.named_buffers() if name in state.adapter.hosts}
    starts = start_of(change.adapter, values | hosts)
    for name, value in values.items():
        owner, leaf = leaf_of(state.factors, name)
        if isinstance(parameter := owner._parameters.get(leaf), nn.Parameter):
            _set_values(parameter, value)
        else:
            owner._buffers[leaf] = value
    state.start = Factors()
    for name, value in starts.items():
        plant(state.start, name, value, trainable=False, persistent=False)
    for (_, word), (moment, kept) in moments.items():
        kept[word] = moment
    state.adapter, state.stacks = change.adapter, {}
    fresh = make_updates(state)
    for path, update in state.updates.items():
        if not isinstance(update, BlocksUpdate):  # those of blocks refer to these
            update.become(cast("Any", fresh[path]))
    state.join_sites(again=True)


def check_change(state: "AdapterState", change: object) -> None:
    """Raise SiteError unless a change is one of this adapter, which is attached and not merged."""
    where = f"adapter {state.name!r}"
    if not isinstance(change, Change):
        todo = "Pass what grow, cut or sweep of tnadapt.policies returns."
        raise mistake(SiteError, f"{where}: resize", "a change", told(change), todo)
    check_open(state)
    if change.before != state.adapter:
        raise SiteError(
            f"{where}: expected a change of this adapter as it is now, got one of another.\n"
            "Make it from state.adapter and state.arrays(), and apply each change before the next one is made."
        )


def check_open(state: "AdapterState") -> None:
    """Raise SiteError unless the adapter is attached and not merged."""
    _ = state.model
    check_apart(state)


def check_whole(state: "AdapterState") -> None:
    """Raise SiteError for factors that other libraries hold, know by their shapes, or compute."""
    where = f"adapter {state.name!r}: expected factors that this process holds to change their shapes, got"
    for name, value in state.params().items():
        owner, leaf = leaf_of(state.factors, name)
        is_held = owner._parameters.get(leaf) is not None or owner._buffers.get(leaf) is not None
        is_here = type(value) in (Tensor, nn.Parameter) and tuple(value.shape) == state.adapter.slots[name].shape
        is_shared = is_sharded(value) or any(hasattr(value, mark) for mark in ("ds_id", "_fsdp_flattened"))
        if is_shared or not (is_held and is_here):
            raise SiteError(
                f"{where} {name!r} of type {type(value).__name__} and shape {tuple(value.shape)}.\n"
                "Save the adapter, load it onto the plain model, change it there, and wrap the model again."
            )
        if value.is_meta:
            raise SiteError(f"{where} {name!r} on the meta device: it was offloaded with its model.")
    trained = {id(value) for value in state.parameters()}
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # a wrapper that was deleted may be part of a cycle
        wrappers = [one for one in gc.get_objects() if DistributedDataParallel in type(one).__mro__]
        if any(id(each) in trained for wrapper in wrappers for each in wrapper.parameters()):
            raise SiteError(
                f"{where} parameters that DistributedDataParallel has put in buckets of their shapes.\n"
                "Delete the wrapper, change the adapter of the plain model (wrapper.module), and wrap it again."
            )


def _tensor(value: npt.ArrayLike, like: Tensor) -> Tensor:
    return torch.from_numpy(np.array(value)).to(like.device, like.dtype)


def _set_values(parameter: nn.Parameter, value: Tensor) -> None:
    """Give a parameter values of another shape.

    What a graph from before holds on to would check later gradients against the old shape. It is forgotten when the
    dtype changes, so that the values pass through another one.
    """
    parameter.grad = None
    other = torch.float32 if value.dtype == torch.float64 else torch.float64
    parameter.data = torch.empty(0, dtype=other, device=value.device)
    parameter.data = value


def _moments(
    optimizer: torch.optim.Optimizer, change: Change, params: Mapping[str, Tensor]
) -> dict[tuple[str, str], tuple[Tensor, dict[str, Any]]]:
    """Return the optimizer's tensors of a factor's shape, carried through a change, each with where it is kept."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        todo = "Pass the optimizer itself: state.resize(change, optimizer)."
        raise mistake(SiteError, "resize", "an optimizer of torch", told(optimizer), todo)
    found = {}
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in params.items():
        kept = optimizer.state.get(parameter, {})
        is_changed = name in change.moves or name in change.factors
        if is_changed and parameter.requires_grad and id(parameter) not in known:
            raise SiteError(
                f"resize: expected the optimizer of the factors that change, got one without {name!r}.\n"
                "Pass the optimizer that has it; or None if there is none, or if you make it again after this."
            )
        if is_changed:
            todo = "Call resize without this optimizer, and make the optimizer again."
            check_moments("resize", change, name, kept, todo)
        for word, value in kept.items():
            if isinstance(value, Tensor) and word not in COUNTS and value.shape == parameter.shape:
                carried = change.carry(name, to_numpy(value), squared=word in SQUARED + STEPS)
                if word in STEPS:  # they are multiplied as values are, and gradients divided
                    carried = carried * change.factors.get(name, 1.0) ** 4
                found[name, word] = _tensor(carried, value), kept
    return found


def check_moments(where: str, change: Change, name: str, kept: Mapping[str, Any], todo: str) -> None:
    """Raise SiteError if an optimizer has a state of a factor that this change of bonds cannot bring along."""
    shape = change.before.slots[name].shape
    for word, value in kept.items():
        if not isinstance(value, Tensor) or word in COUNTS:
            continue
        is_other = value.numel() > 1 and tuple(value.shape) != shape
        if is_other or word in PARTS or (word in STEPS and change.mixes(name)):
            raise SiteError(
                f"{where}: expected means of gradients of shape {shape} as the optimizer's state of "
                f"{name!r}, got {word!r} of shape {tuple(value.shape)}.\n{todo}"
            )
