"""What serves one site: a forward hook that is a plain object, so that it pickles and copies with the model."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from tnadapt import Network
from tnadapt_torch._lower import lower_apply, lower_delta

__all__: list[str] = []


class Ref(Protocol):
    """Where a site finds its part of a factor.

    The owner is asked at every call, since a move or a cast may bind a buffer, and FSDP a parameter, anew.
    """

    def read(self) -> Tensor:
        """The part, in the factor's dtype and on its device."""
        ...


@dataclass(frozen=True)
class Part:
    """A factor that sites share: all of it, or the leading part of one that is drawn at the largest sizes."""

    owner: nn.Module
    name: str
    lengths: tuple[slice, ...] | None

    def read(self) -> Tensor:
        """As `Ref` says."""
        tensor: Tensor = getattr(self.owner, self.name)
        return tensor if self.lengths is None else tensor[self.lengths]


class Stack:
    """A factor that is stacked over sites, taken apart once for all of them.

    Selecting a row gives, in the backward pass, a gradient of the whole stack for each site: a cost quadratic in the
    sites. Rows that are unbound together share one backward step, which is linear. They are views of the factor, so
    no value in them can be stale; they are made anew when the factor is bound, moved or changed, or when the autograd
    mode is another.
    """

    def __init__(self, owner: nn.Module, name: str, axes: tuple[int, ...]) -> None:
        """Args: who holds the factor, under which name, and which of its axes are site modes."""
        self.owner = owner
        self.name = name
        self.axes = axes
        self._tensor: Tensor | None = None
        self._key: tuple[Any, ...] = ()
        self._rows: Any = None

    def read(self, index: tuple[int, ...]) -> Tensor:
        """The row at an index of the site modes."""
        tensor: Tensor = getattr(self.owner, self.name)
        if torch.compiler.is_compiling() or not tensor.is_leaf or tensor.is_inference():
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
        return {"owner": self.owner, "name": self.name, "axes": self.axes}

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


class SiteHook:
    """Adds the update of one site to the output of its module; does nothing while its adapter is off or merged."""

    def __init__(self, owner: Owner, path: str, network: Network, refs: Iterable[Ref], start: Iterable[Ref]) -> None:
        """`refs` are the factors in the network's order, `start` those of the starting values (centered specs only)."""
        self.owner = owner
        self.path = path
        self.network = network
        self.refs = tuple(refs)
        self.start = tuple(start)
        self._write_code()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """The output with the update added, a new tensor."""
        owner = self.owner
        if not owner.active:
            return output
        x: Tensor = args[0] if args else kwargs["input"]
        if owner.dropout and owner.training:
            x = torch.nn.functional.dropout(x, owner.dropout)
        x = x.to(output.dtype)
        result = self._add(output, x, *_read(self.refs, x))
        if self.start:
            result = self._subtract(result, x, *_read(self.start, x))
        return result

    def delta(self, like: Tensor) -> Tensor:
        """The dense update, of shape (out, in), in the dtype and on the device of `like`."""
        update = self._dense(*_read(self.refs, like))
        return update - self._dense(*_read(self.start, like)) if self.start else update

    def _write_code(self) -> None:
        self._add = lower_apply(self.network)
        self._subtract = lower_apply(self.network, -1.0)
        self._dense = lower_delta(self.network)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the code, which is written again from the network."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_add", "_subtract", "_dense")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._write_code()


def _read(refs: Iterable[Ref], like: Tensor) -> list[Tensor]:
    """The factors of a site, in the dtype and on the device of `like`."""
    return [ref.read().to(device=like.device, dtype=like.dtype) for ref in refs]
