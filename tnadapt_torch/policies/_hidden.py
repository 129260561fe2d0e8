"""Slices that are hidden instead of cut, where parameters must keep their shapes: zeros in values and moments."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tnadapt import Adapter
from tnadapt.policies import Change, hide
from tnadapt_torch._sharded import laid_like, reshard
from tnadapt_torch._state import COUNTS, SQUARED, AdapterState, check_moments, to_numpy

__all__: list[str] = []

Array = npt.NDArray[np.generic]


class Hidden:
    """The slices of bonds that are left; the others are 0 in all trained factors, and stay 0."""

    def __init__(self, state: AdapterState, optimizer: torch.optim.Optimizer) -> None:
        """Begin with no hidden slice. `alive` has the slices that are left of each bond that lost some."""
        self.state, self.optimizer = state, optimizer
        self._alive: dict[str, tuple[int, ...]] = {}
        self._masks: dict[str, Tensor] = {}

    @property
    def alive(self) -> dict[str, tuple[int, ...]]:
        """The slices that are left, by bond. Raises SiteError, when set, for slices that cannot be hidden."""
        return self._alive

    @alive.setter
    def alive(self, alive: Mapping[str, tuple[int, ...]]) -> None:
        masks = hide(self.state.adapter, alive) if alive else {}
        self._masks = {name: torch.from_numpy(mask) for name, mask in masks.items()}
        self._alive = dict(alive)

    @torch.no_grad()
    def apply(self) -> None:
        """Set the hidden slices to 0 in the trained factors and in the moments of the optimizer."""
        if not self._masks:
            return
        reshard([self.state, *self.state.host])
        params = self.state.params()
        for name, mask in self._masks.items():
            own = mask.to(params[name].device, params[name].dtype)
            for tensor in (params[name], *self._moments_of(params[name]).values()):
                tensor.mul_(laid_like(own.to(tensor.dtype).expand(tensor.shape).contiguous(), tensor))

    @torch.no_grad()
    def take(self, change: Change) -> None:
        """Take over what a sweep made in the shapes of before: the slices that it leaves come first, then zeros.

        The scale of the update stays that of before, so that what would make up for another one is left out. Raises
        SiteError, and changes nothing, if the optimizer has a state of other shapes than the factors.
        """
        reshard([self.state, *self.state.host])
        params, sizes = self.state.params(), sizes_of(change.adapter)
        written: list[tuple[Tensor, Array]] = []
        for name in sorted({*change.moves, *change.factors}):  # processes gather in one order
            parameter, factor = params[name], change.factors.get(name, 1.0)
            todo = "Use an optimizer with moments of the factors' shapes, such as Adam."
            check_moments("sweep", change, name, self.optimizer.state.get(parameter, {}), todo)
            written.append((parameter, change.params[name] / factor))
            for word, moment in self._moments_of(parameter).items():
                is_squared = word in SQUARED
                carried = change.carry(name, to_numpy(moment), squared=is_squared)
                written.append((moment, carried * factor ** (2 if is_squared else 1)))
        self.alive = {**self._alive, **{name: tuple(range(sizes[name])) for name in change.errors}}
        for tensor, values in written:
            _write(tensor, values)

    def _moments_of(self, parameter: Tensor) -> dict[str, Tensor]:
        kept = self.optimizer.state.get(parameter, {})
        return {
            word: value
            for word, value in kept.items()
            if isinstance(value, Tensor) and value.shape == parameter.shape and word not in COUNTS
        }


def sizes_of(adapter: Adapter) -> dict[str, int]:
    """Return the size of every bond by name."""
    return {
        adapter.bond_name(group, mode): group.network.sizes[mode]
        for group in adapter.groups
        for mode in adapter.spec.bonds
    }


def _write(tensor: Tensor, values: Array) -> None:
    """Write an array into a tensor, at its beginning along each axis, and zeros elsewhere."""
    full = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    full[tuple(slice(length) for length in values.shape)] = torch.from_numpy(np.array(values)).to(full)
    tensor.copy_(laid_like(full, tensor))
