"""The update of a weight that holds several sites: each block gets its rows and columns."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tnadapt import Site, SiteError
from tnadapt_torch._run.call import Owner, is_dropping, see_x
from tnadapt_torch._run.magnitude import MagnitudeUpdate
from tnadapt_torch._run.site import SiteUpdate, add_by_rows, product_of

__all__: list[str] = []


Single = SiteUpdate | MagnitudeUpdate  # the update of one site


class BlocksUpdate:
    """Adds the update of each block of a weight, from its columns of x to its rows of the output.

    If the blocks belong to several tasks, only those of the owner's task are used. A weight without a block for that
    task gets no update.
    """

    def __init__(self, owner: Owner, updates: Mapping[Site, Single]) -> None:
        """Store the adapter and the update of each site. Raise SiteError for blocks whose rows overlap only in part."""
        self.owner = owner
        self.unproven = False
        self.may_fold = False
        self.layer = None  # never called at once with its layer
        self.shape = next(iter(updates)).weight_shape
        self.width = self.shape[-1]
        self.by_task: dict[str, dict[Site, Single]] = {}
        for site, update in updates.items():
            self.by_task.setdefault(str(site.coordinates.get("task", "")), {})[site] = update
        for site, update in updates.items():
            update.reads_product &= site.rectangle[-1] == slice(0, self.width)  # a part of x has no product at hand
        self._reads_product = any(update.reads_product for update in updates.values())
        self.bands = {task: _bands(part) for task, part in self.by_task.items()}

    @property
    def reads_product(self) -> bool:
        """Whether a block reads its rows of the product that the layer makes. If set to False, none of them does."""
        return self._reads_product

    @reads_product.setter
    def reads_product(self, value: bool) -> None:
        self._reads_product = value
        for part in self.by_task.values():
            for update in part.values():
                update.reads_product &= value

    def __call__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
        base: Tensor | None = None,
    ) -> Tensor:
        """Return the output with the updates added, as a new tensor. `base` is the output without any update."""
        if not self.owner.active:
            return output
        product = product_of(module, base) if self.reads_product and base is not None else None
        return add_by_rows(self.add, output, see_x(self, args, kwargs, output), product)

    def add(self, flat: Tensor, seen: Tensor, product: Tensor | None = None) -> Tensor:
        """Return the output (token, out) with the updates of x (token, in) added.

        `product` is as in `SiteUpdate.add`. The blocks that read all of x read their rows of it.
        """
        done, parts = 0, []
        for rows, updates in self.bands.get(self.owner.task, ()):
            if rows.start > done:
                parts.append(flat[:, done : rows.start])
            part = flat[:, rows]
            for columns, update in updates:
                is_given = product is not None and update.reads_product
                is_given = is_given and (isinstance(update, MagnitudeUpdate) or not is_dropping(self.owner))
                part = update.add(
                    part, seen[:, columns], product[:, rows] if is_given and product is not None else None
                )
            parts.append(part)
            done = rows.stop
        if done < flat.shape[1]:
            parts.append(flat[:, done:])
        return torch.cat(parts, 1)

    def call_inside(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Return None, as `SiteUpdate.call_inside` does where it does not pay."""
        return None

    def allow_folding(self) -> None:
        """Do nothing: the blocks of a weight are always added to the output."""

    def write_dense(self) -> None:
        """Write the code of the dense update of each site, as `SiteUpdate.write_dense`."""
        for updates in self.by_task.values():
            for update in updates.values():
                update.write_dense()

    def delta(self, like: Tensor) -> Tensor:
        """Return the dense update of the weight, 0 outside the blocks, in the dtype and on the device of `like`."""
        parts = {site: update.delta(like) for site, update in self.by_task.get(self.owner.task, {}).items()}
        model = next(iter(parts.values()), like)  # under vmap, only a tensor made from one of many can take many
        whole = model.new_zeros(self.shape)
        for site, part in parts.items():
            whole[site.rectangle] = part
        return whole


Update = Single | BlocksUpdate


def _bands(
    updates: Mapping[Site, Single],
) -> list[tuple[slice, list[tuple[slice, Single]]]]:
    """Collect the row ranges of the output in order, each with the columns of x that contribute to it.

    A weight of experts has no such ranges, since its update is always folded into the weight.
    """
    found: dict[tuple[int, int], list[tuple[slice, Single]]] = {}
    for site, update in updates.items():
        *_, rows, columns = site.rectangle
        if isinstance(rows, slice) and isinstance(columns, slice) and len(site.rectangle) == len(site.shape):
            found.setdefault((rows.start, rows.stop), []).append((columns, update))
    bands = sorted(found)
    for (_, stop), (start, _) in pairwise(bands):
        if start < stop:
            path = next(iter(updates)).weight
            raise SiteError(
                f"{path}: expected blocks with equal or disjoint rows, "
                f"got row {start} in two blocks with different rows."
            )
    return [(slice(*band), found[band]) for band in bands]
