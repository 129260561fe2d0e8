"""What serves one site: a forward hook that is a plain object, so that it pickles and copies with the model."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from tnadapt.binding import BUCKETS, Network
from tnadapt_torch._run.lower import Code, lower_apply, lower_delta
from tnadapt_torch._run.maps import map_factor

__all__: list[str] = []

NEEDS = ("nothing", "factors", "factors and x")  # what needs a gradient: a row of codes for each, a bucket a column
COMPILED = 2 * len(BUCKETS) + BUCKETS.index(1024)  # torch.compile gets one code: a choice by tokens would compile anew


class Ref(Protocol):
    """Where a site finds its part of a factor.

    The owner's table of parameters or buffers is asked at every call, since a move or a cast may bind a buffer anew,
    and FSDP a parameter. (The table itself: asking a module by attribute takes as long as a small product.)
    """

    def read(self) -> Tensor:
        """The part, in the factor's dtype and on its device."""
        ...


@dataclass(frozen=True)
class Leading:
    """A factor that sites share: all of it, or the leading part of one that is drawn at the largest sizes."""

    table: dict[str, Any]
    name: str
    lengths: tuple[slice, ...] | None

    def read(self) -> Tensor:
        """As `Ref` says."""
        tensor: Tensor = self.table[self.name]
        return tensor if self.lengths is None else tensor[self.lengths]


class Stack:
    """A factor that is stacked over sites, taken apart once for all of them.

    Selecting a row gives, in the backward pass, a gradient of the whole stack for each site: a cost quadratic in the
    sites. Rows that are unbound together share one backward step, which is linear. They are views of the factor, so
    no value in them can be stale; they are made anew when the factor is bound, moved or changed, or when the autograd
    mode is another.
    """

    def __init__(self, table: dict[str, Any], name: str, axes: tuple[int, ...]) -> None:
        """Args: the table that holds the factor, its name there, and which of its axes are site modes."""
        self.table = table
        self.name = name
        self.axes = axes
        self._tensor: Tensor | None = None
        self._key: tuple[Any, ...] = ()
        self._rows: Any = None

    def read(self, index: tuple[int, ...]) -> Tensor:
        """The row at an index of the site modes."""
        tensor: Tensor = self.table[self.name]
        if type(tensor) is not nn.Parameter or torch.compiler.is_compiling() or tensor.is_inference():
            for axis, place in zip(reversed(self.axes), reversed(index), strict=True):
                tensor = tensor.select(axis, place)
            return tensor
        key = (
            tensor._version,
            tensor.data_ptr(),
            tensor.requires_grad,
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        )
        if tensor is not self._tensor or key != self._key:
            self._tensor, self._key, self._rows = tensor, key, _unbind(tensor, self.axes)
        row = self._rows
        for place in index:
            row = row[place]
        return cast("Tensor", row)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the rows, which cannot be copied and are made anew."""
        return {"table": self.table, "name": self.name, "axes": self.axes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


@dataclass(frozen=True)
class Row:
    """A site's row of a stacked factor."""

    stack: Stack
    index: tuple[int, ...]

    def read(self) -> Tensor:
        """As `Ref` says."""
        return self.stack.read(self.index)


@dataclass(frozen=True)
class Mapped:
    """A factor that is made anew at each read from what is held."""

    ref: Ref
    map: str

    def read(self) -> Tensor:
        """As `Ref` says."""
        return map_factor(self.map, self.ref.read())


def _unbind(tensor: Tensor, axes: tuple[int, ...]) -> Any:
    """Nested tuples of views, one level for each axis; axes are rising."""
    first, *others = axes
    rest = tuple(axis - 1 for axis in others)
    return tuple(_unbind(row, rest) if rest else row for row in tensor.unbind(first))


class Owner(Protocol):
    """What a site asks of its adapter at each call."""

    dropout: float
    training: bool

    @property
    def active(self) -> bool:
        """Whether updates are added now."""
        ...

    @property
    def task(self) -> str:
        """Which task's sites are used; "" where there are none."""
        ...


class SiteHook:
    """Adds the update of one site to the output of its module; does nothing while its adapter is off or merged."""

    def __init__(self, owner: Owner, network: Network, refs: Iterable[Ref]) -> None:
        """`refs` are the factors in the network's order; for a centered one, then those of the starting values."""
        self.owner = owner
        self.network = network
        self.refs = tuple(refs)
        self.width = network.volume(network.in_modes)
        self._code: list[Code | None] = []
        self._forget_code()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """The output with the update added, a new tensor."""
        if not self.owner.active:
            return output
        x = see_x(self.owner, args, kwargs, output)
        if x.ndim == 2:  # noqa: PLR2004  (views cost as much as small products do)
            return self.add(output, x)
        flat = self.add(output.reshape(-1, output.shape[-1]), x.reshape(-1, self.width))
        return flat.reshape(output.shape)

    def add(self, output: Tensor, x: Tensor) -> Tensor:
        """The output (token, out) with the update of x (token, in) added."""
        if torch.compiler.is_compiling():
            place = COMPILED
        else:
            place = max(bisect_right(BUCKETS, len(x)) - 1, 0)
            place += len(BUCKETS) * (0 if not torch.is_grad_enabled() else 2 if x.requires_grad else 1)
        code = self._code[place] or self._write_code(place)
        return code(output, x, *_read(self.refs, x))

    def delta(self, like: Tensor) -> Tensor:
        """The dense update, of shape (out, in), in the dtype and on the device of `like`."""
        return lower_delta(self.network)(*_read(self.refs, like))

    def _write_code(self, place: int) -> Code:
        """The code for a bucket of tokens and a need of gradients; written at the first call that asks for it."""
        need, bucket = divmod(place, len(BUCKETS))
        code = lower_apply(self.network, BUCKETS[bucket], training=need > 0, x_needs_grad=need > 1)
        self._code[place] = code
        return code

    def _forget_code(self) -> None:
        """No code but that which torch.compile traces, which cannot be written while it does."""
        self._code = [None] * (len(NEEDS) * len(BUCKETS))
        self._write_code(COMPILED)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the code, which is written again from the network."""
        return {name: value for name, value in self.__dict__.items() if name != "_code"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_code()


def see_x(owner: Owner, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
    """The x that an adapter sees, in the dtype of the output."""
    x: Tensor = args[0] if args else next(iter(kwargs.values()))
    if owner.dropout and owner.training:
        x = torch.nn.functional.dropout(x, owner.dropout)
    return x if x.dtype == output.dtype else x.to(output.dtype)


def _read(refs: Iterable[Ref], like: Tensor) -> list[Tensor]:
    """The factors of a site, in the dtype and on the device of `like`."""
    dtype, device = like.dtype, like.device
    parts = [ref.read() for ref in refs]
    return [part if part.dtype == dtype and part.device == device else part.to(device, dtype) for part in parts]
