"""What serves one site: a forward hook that is a plain object, so that it pickles and copies with the model."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tnadapt import Network
from tnadapt_torch._lower import lower_apply, lower_delta

__all__: list[str] = []

Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class Ref:
    """Where a site finds a factor: the module that owns it, its name there, and which part of it is the site's.

    The owner is asked at every call, since a move or a cast may bind a buffer, and FSDP a parameter, anew.
    """

    owner: nn.Module
    name: str
    index: Index | None

    def read(self, like: Tensor) -> Tensor:
        """The site's part of the factor, in the dtype and on the device of `like`."""
        tensor: Tensor = getattr(self.owner, self.name)
        if self.index is not None:
            tensor = tensor[self.index]
        return tensor.to(device=like.device, dtype=like.dtype)


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
        result = self._add(output, x, *[ref.read(x) for ref in self.refs])
        if self.start:
            result = self._subtract(result, x, *[ref.read(x) for ref in self.start])
        return result

    def delta(self, like: Tensor) -> Tensor:
        """The dense update, of shape (out, in), in the dtype and on the device of `like`."""
        update = self._dense(*[ref.read(like) for ref in self.refs])
        return update - self._dense(*[ref.read(like) for ref in self.start]) if self.start else update

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
