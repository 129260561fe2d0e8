"""A site's part of each factor, looked up at every call."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tnadapt import SiteError
from tnadapt_torch._run.maps import map_factor
from tnadapt_torch._sharded import beside, whole

__all__: list[str] = []


class Ref(Protocol):
    """A reference to a site's part of a factor, which is looked up at every call."""

    def read(self) -> Tensor:
        """Return the part, in the dtype and on the device of the factor."""
        ...


@dataclass(frozen=True)
class Held:
    """A parameter or buffer of a module, by name.

    A move or a cast may replace a buffer, FSDP a parameter, and DeepSpeed the table of parameters, so only the module
    is held. (Its tables are read directly: a module attribute takes as long as a small product.)
    """

    module: nn.Module
    name: str
    is_parameter: bool

    @property
    def stored(self) -> Tensor:
        """The tensor, or the part of it that this process holds."""
        found = self.kept
        return self._computed() if found is None else found

    @property
    def kept(self) -> Tensor | None:
        """As `stored`, but None if it is computed."""
        return (self.module._parameters if self.is_parameter else self.module._buffers).get(self.name)

    def read(self) -> Tensor:
        """Return the tensor, with all its values."""
        module = self.module
        tensor = (module._parameters if self.is_parameter else module._buffers).get(self.name)
        if tensor is None:
            return self._computed()
        return tensor if type(tensor) is nn.Parameter or type(tensor) is Tensor else whole(tensor)

    def _computed(self) -> Tensor:
        """Compute a factor that is parametrized. Raise SiteError for one that only a call of its module computes."""
        if parametrize.is_parametrized(self.module, self.name):
            return cast("Tensor", getattr(self.module, self.name))
        raise SiteError(
            f"factor: expected {self.name!r} to be stored or computed by torch.nn.utils.parametrize, got one that was "
            "pruned, normed or removed.\nSuch a factor is computed when its module is called, which nobody does."
        )


@dataclass(frozen=True)
class Leading:
    """The leading part of a shared factor, which was drawn at the largest sizes."""

    held: Held
    lengths: tuple[slice, ...]

    def read(self) -> Tensor:
        """Return the part, as `Ref` says."""
        return self.held.read()[self.lengths]


class Stack:
    """A factor that is stacked over sites, unbound once for all of them.

    If each site selected its own row, the backward pass would compute a gradient of the whole stack per site, at a cost
    quadratic in the number of sites. Rows that are unbound together share one backward step, at linear cost. The rows
    are views of the factor, so their values are never stale. They are unbound again after the factor is replaced,
    moved or changed, and when the autograd mode changes.

    What is kept is one tuple, replaced as a whole, so that a thread that evaluates beside the training never sees half
    of it. Nothing is kept of a pass that is traced: fake and wrapped tensors must not outlive it.
    """

    def __init__(self, held: Held, axes: tuple[int, ...]) -> None:
        """Store where the factor is held, and which of its axes are site modes."""
        self.held = held
        self.axes = axes
        self._kept: tuple[Tensor, tuple[Any, ...], Any] | None = None
        self._places: tuple[torch.device, list[tuple[Tensor, ...]]] | None = None

    def read(self, index: tuple[int, ...]) -> Tensor:
        """Return the row at an index of the site modes."""
        tensor = self.held.read()
        if type(tensor) is not nn.Parameter or tensor.is_inference() or _is_traced():
            return self._select(tensor, index)
        key = (
            tensor._version,
            tensor.data_ptr(),
            tensor.requires_grad,
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        )
        kept = self._kept
        if kept is None or kept[0] is not tensor or kept[1] != key:
            if torch._C._functorch.peek_interpreter_stack() is not None:  # a transform, such as vmap
                return self._select(tensor, index)
            self._kept = kept = tensor, key, _unbind(tensor, self.axes)
        row = kept[2]
        for place in index:
            row = row[place]
        return cast("Tensor", row)

    def places(self, index: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Return an index as tensors on the device of the factor, one for each axis.

        Each has memory of its own: a compiler would take the offset of a view for a size, which a batch can have too.
        """
        tensor = self.held.stored
        device = torch.device("cpu") if tensor.is_meta else tensor.device
        if self._places is None or self._places[0] != device:
            with torch.inference_mode(False):  # a compiled backward pass saves them
                ranges = [torch.arange(tensor.shape[axis], device=device) for axis in self.axes]
                self._places = device, [tuple(map(torch.clone, torch.split(indices, 1))) for indices in ranges]
        return tuple(places[at] for places, at in zip(self._places[1], index, strict=True))

    def forget(self) -> None:
        """Drop the rows, which hold the factor: a conversion that swaps parameters needs it to be held by none."""
        self._kept = None

    def _select(self, tensor: Tensor, index: tuple[int, ...]) -> Tensor:
        for axis, place in zip(reversed(self.axes), reversed(index), strict=True):
            tensor = tensor.select(axis, place)
        return tensor

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the rows, which cannot be copied and are unbound again."""
        return {"held": self.held, "axes": self.axes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _is_traced() -> bool:
    """Return whether every operation is seen: by a mode, such as FakeTensorMode or that of make_fx, or by torch.jit."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state() is not None


class Row:
    """A site's row of a stacked factor.

    `index` is its place along each site mode. Compiled code reads the same numbers from tensors, on the device of the
    factor: a number would be a constant of the graph, and each layer that is compiled by itself would need its own.
    """

    def __init__(self, stack: Stack, index: tuple[int, ...]) -> None:
        """Store the stack and the place of the row."""
        self.stack = stack
        self.index = index
        self.places = stack.places(index)

    def read(self) -> Tensor:
        """Return the part, as `Ref` says."""
        if not torch.compiler.is_compiling():
            return self.stack.read(self.index)
        tensor = self.stack.held.read()
        for axis, place in zip(reversed(self.stack.axes), reversed(self.places), strict=True):
            here = place if place.device == tensor.device else place.to(tensor.device)
            tensor = _row_at(tensor, axis, here)
        return tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Row) and self.stack is other.stack and self.index == other.index

    def __hash__(self) -> int:
        return hash((id(self.stack), self.index))

    def follow(self) -> None:
        """Move the tensors of the place to the device of the factor."""
        self.places = self.stack.places(self.index)


def _row_at(tensor: Tensor, axis: int, place: Tensor) -> Tensor:
    """Return the row of a stack at a place that is a tensor, for compiled code.

    `index_select` alone has a gradient that adds to zeros at an index. Where that gradient is a transposed product and
    there are two threads or more, the inductor of torch 2.13 counts the place in a tile of 16 x 16 twice, and writes
    beyond the array: wrong gradients, or a crash (pytorch/pytorch issue 191837). `tests/torch/seam/test_rows.py` fails
    with the first torch that does not. An exported program reads rows plainly, since any process may load it.
    """
    if tensor.is_cpu and not torch.compiler.is_exporting():
        if torch._C._are_functorch_transforms_active():  # they hide whether a gradient is needed
            return torch.where(_is_at(place, axis, tensor.shape), tensor, 0).sum(axis)
        if tensor.requires_grad and torch.is_grad_enabled():
            tensor = torch.ops.tnadapt_torch.row(tensor, axis, place)
            return tensor.squeeze(axis)
    return tensor.index_select(axis, place).squeeze(axis)


def _is_at(place: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """Return whether each index of an axis is the place, in a shape that is like that of the stack from the axis on."""
    return torch.arange(shape[axis], device=place.device).reshape([-1] + [1] * (len(shape) - axis - 1)) == place


class _Taken(torch.autograd.Function):
    """A row with a gradient of its own: zeros stand beside the row, which is no addition."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, axis: int, place: Tensor) -> Tensor:
        """Return the row, whose axis has length 1."""
        ctx.axis, ctx.shape = axis, tensor.shape
        ctx.save_for_backward(place)
        return tensor.index_select(axis, place)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the stack: that of the row at its place, and 0 elsewhere."""
        (place,) = ctx.saved_tensors
        return torch.where(_is_at(place, ctx.axis, ctx.shape), gradients[0], 0), None, None


# An operator, since Dynamo writes it into a graph as it is, and torch keeps that graph for the next process; both are
# seen through when the gradient is traced. To allow the function in graphs would import Dynamo, which takes a second.
# The key of such a graph has the name of the operator, not its code: with another gradient it needs another name.
if not hasattr(torch.ops.tnadapt_torch, "row"):  # it is there if this module is loaded again
    _LIBRARY: Any = torch.library.Library("tnadapt_torch", "FRAGMENT")  # type: ignore[no-untyped-call]
    _LIBRARY.define("row(Tensor stack, int axis, Tensor place) -> Tensor")
    _LIBRARY.impl("row", torch.index_select, "CompositeImplicitAutograd")
    _LIBRARY.impl("row", _Taken.apply, "AutogradCPU")


class Joining(Protocol):
    """A site whose products of factors are made together with those of others."""

    def read(self, shared: Any, number: int, row: int, dtype: torch.dtype | None) -> Tensor:
        """Return a product at this site."""
        ...


@dataclass(frozen=True)
class Joint:
    """A product of factors at one site, a row of what is made for all sites."""

    member: Joining = field(compare=False)
    shared: Any
    number: int
    row: int

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the product in a dtype, or in that of the factors."""
        return self.member.read(self.shared, self.number, self.row, dtype)


@dataclass(frozen=True)
class Mapped:
    """A factor with a map, which is applied to the stored parameter at each read."""

    ref: Ref
    map: str

    def read(self) -> Tensor:
        """Return the part, as `Ref` says."""
        return map_factor(self.map, self.ref.read())


def _unbind(tensor: Tensor, axes: tuple[int, ...]) -> Any:
    """Unbind a tensor into nested tuples of views, one level per axis; the axes are in ascending order."""
    first, *others = axes
    rest = tuple(axis - 1 for axis in others)
    return tuple(_unbind(row, rest) if rest else row for row in tensor.unbind(first))


def read_in(ref: Ref, dtype: torch.dtype) -> Tensor:
    """Read a factor as it is stored, or a product of factors in a dtype: cast for all sites at once."""
    return ref.read(dtype) if type(ref) is Joint else ref.read()


def read_all(refs: Iterable[Ref], like: Tensor) -> Sequence[Tensor]:
    """Read the factors of a site, in the dtype and on the device of `like`, and as copies if that is sharded."""
    dtype, device = like.dtype, like.device
    parts = [read_in(ref, dtype) for ref in refs]
    parts = [part if part.dtype == dtype and part.device == device else _moved(part, like) for part in parts]
    return parts if type(like) is Tensor else beside(parts, like)


def _moved(part: Tensor, like: Tensor) -> Tensor:
    if part.is_meta and not like.is_meta:
        raise SiteError(
            "factor: expected a factor with values, got one on the meta device: the adapter was offloaded with its "
            "model.\nAttach or load the adapter after the model is offloaded. Before it, for one that reads the host's "
            "weights: use dispatch_model, with the adapter on the main device."
        )
    return part.to(like.device, like.dtype)
