"""What serves a weight that several sites lie in: one hook that gives each block its rows and columns."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tnadapt import Site, SiteError
from tnadapt_torch._run.site import Owner, SiteHook, see_x

__all__: list[str] = []


class BlocksHook:
    """Adds the updates of a weight's blocks, each to its rows of the output from its columns of x.

    Where the blocks serve several tasks, those of the owner's task are used; a weight without one for it is as it was.
    """

    def __init__(self, owner: Owner, hooks: Mapping[Site, SiteHook]) -> None:
        """Args: the adapter, and what serves each site. Raises SiteError for blocks whose rows overlap in part."""
        self.owner = owner
        self.shape = next(iter(hooks)).weight_shape
        self.by_task: dict[str, dict[Site, SiteHook]] = {}
        for site, hook in hooks.items():
            self.by_task.setdefault(str(site.coordinates.get("task", "")), {})[site] = hook
        self.bands = {task: _bands(part) for task, part in self.by_task.items()}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """The output with the updates added, a new tensor."""
        if not self.owner.active:
            return output
        x = see_x(self.owner, args, kwargs, output)
        flat, seen = output.reshape(-1, output.shape[-1]), x.reshape(-1, x.shape[-1])
        done, parts = 0, []
        for rows, hooks in self.bands.get(self.owner.task, ()):
            if rows.start > done:
                parts.append(flat[:, done : rows.start])
            part = flat[:, rows]
            for columns, hook in hooks:
                part = hook.add(part, seen[:, columns])
            parts.append(part)
            done = rows.stop
        if done < flat.shape[1]:
            parts.append(flat[:, done:])
        return torch.cat(parts, 1).reshape(output.shape)

    def delta(self, like: Tensor) -> Tensor:
        """The dense update of the whole weight, in the dtype and on the device of `like`; 0 where no block lies."""
        whole = torch.zeros(self.shape, dtype=like.dtype, device=like.device)
        for site, hook in self.by_task.get(self.owner.task, {}).items():
            whole[site.rectangle] = hook.delta(like)
        return whole


Hook = SiteHook | BlocksHook


def _bands(hooks: Mapping[Site, SiteHook]) -> list[tuple[slice, list[tuple[slice, SiteHook]]]]:
    """Rows of the output from above to below, each with the columns of x that it gets an update from.

    None for a weight of experts, which is called with no x of its own.
    """
    found: dict[tuple[int, int], list[tuple[slice, SiteHook]]] = {}
    for site, hook in hooks.items():
        *_, rows, columns = site.rectangle
        if isinstance(rows, slice) and isinstance(columns, slice) and len(site.rectangle) == len(site.shape):
            found.setdefault((rows.start, rows.stop), []).append((columns, hook))
    bands = sorted(found)
    for (_, stop), (start, _) in pairwise(bands):
        if start < stop:
            path = next(iter(hooks)).weight
            raise SiteError(
                f"{path}: blocks have the same rows or none together.\nHowever, row {start} is in two of them."
            )
    return [(slice(*band), found[band]) for band in bands]
