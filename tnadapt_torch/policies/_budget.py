"""AdaLoRA's budget for an attached adapter: slices of bonds are cut, or hidden, while it is trained."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tnadapt import SiteError
from tnadapt.policies import Budget, bonds, cut, tellers
from tnadapt_torch._sharded import reshard, whole
from tnadapt_torch._state import AdapterState
from tnadapt_torch.policies._hidden import Hidden, sizes_of
from tnadapt_torch.policies._schedule import Schedule, Shapes

__all__ = ["BudgetSchedule"]

Array = npt.NDArray[np.float64]


class BudgetSchedule(Schedule[Budget]):
    """Cut the bonds of an adapter to a falling number of slices, those that the loss depends on most: AdaLoRA's rule.

    The importances are summed on the device, from values and gradients after the optimizer's step. Processes with equal
    gradients decide alike.
    """

    kind = Budget

    def __init__(
        self,
        state: AdapterState,
        optimizer: torch.optim.Optimizer,
        policy: Budget,
        *,
        bonds: Sequence[str] | None = None,
        shapes: Shapes = "change",
    ) -> None:
        """Begin a schedule.

        Args:
            state: the adapter.
            optimizer: the optimizer of its factors.
            policy: how many slices are left at which step; it is copied.
            bonds: names of bonds that share the budget, as "r" or "0.q.r"; by default all that can be cut.
            shapes: "change" cuts slices. "keep" sets them to 0 instead, and `finish` cuts them: for parameters that
                cannot change shape, as under DistributedDataParallel or fully_shard.

        Raises:
            SiteError: the adapter is merged, detached or under PEFT; or a bond has no importance or cannot be cut.
        """
        super().__init__(state, optimizer, policy, shapes)
        self.bonds = _chosen(state, bonds, shapes)

    def _act(self, policy: Budget) -> None:
        found = self._importances()
        keep = policy.step(found)
        if self.shapes == "change":
            if keep:
                state = self.state
                state.resize(cut(state.adapter, state.arrays(), keep), self.optimizer)
            return
        if keep:
            before = self.hidden.alive
            alive = {
                name: tuple(before[name][place] for place in places) if name in before else places
                for name, places in keep.items()
            }
            self.hidden.alive = before | alive
        self.hidden.apply()

    @torch.no_grad()
    def _importances(self) -> dict[str, Array]:
        """Return d loss / d lambda of each slice that is left: sums of F dL/dF, in float64, on the CPU."""
        reshard([self.state, *self.state.host])
        params, told = self.state.params(), tellers(self.state.adapter)
        totals = []
        for name in self.bonds:
            parts: list[torch.Tensor] = []
            for entry, axes in told[name]:
                if (gradient := params[entry].grad) is None:
                    raise SiteError(
                        f"BudgetSchedule: expected the gradient of {entry!r}, got none.\n"
                        "Call step() after backward() and optimizer.step(), and before zero_grad()."
                    )
                product = whole(params[entry].detach()).double() * whole(gradient.detach()).double()
                parts += [product.movedim(axis, 0).reshape(product.shape[axis], -1).sum(1) for axis in axes]
            total = torch.zeros(max(map(len, parts)), dtype=torch.float64, device=parts[0].device)
            for part in parts:
                total[: len(part)] += part.to(total.device)
            totals.append(total)
        values: Array = torch.cat([total.to(totals[0].device) for total in totals]).cpu().numpy()
        ends = np.cumsum([len(total) for total in totals])
        found = dict(zip(self.bonds, np.split(values, ends[:-1]), strict=True))
        alive = self.hidden.alive
        return {name: value[list(alive[name])] if name in alive else value for name, value in found.items()}

    def _fits(self, policy: Budget, hidden: Hidden) -> None:
        sizes = sizes_of(self.state.adapter)
        for name, mean in policy.mean.items():
            here = len(hidden.alive.get(name, range(sizes.get(name, 0))))
            if name not in self.bonds or here != len(mean):
                raise SiteError(
                    f"BudgetSchedule: expected a bond {name!r} of {len(mean)} slices, as in the state, got {here}.\n"
                    "Load the adapter from the file of the same step first, and make the schedule with the same bonds."
                )


def _chosen(state: AdapterState, names: Sequence[str] | None, shapes: Shapes) -> tuple[str, ...]:
    """Return the bonds that share a budget. Raises SiteError for a named one that cannot, or if there is none."""
    operations = ("importance", "cut" if shapes == "change" else "hide")
    tables = [bonds(state.adapter, operation) for operation in operations]  # type: ignore[arg-type]
    reasons = {name: next((t[name] for t in tables if t[name] != "ok"), "ok") for name in tables[0]}
    named = [] if names is None else [b for b in reasons if any(b == n or b.rpartition(".")[2] == n for n in names)]
    unknown = [n for n in names or () if not any(b == n or b.rpartition(".")[2] == n for b in reasons)]
    if unknown:
        raise SiteError(
            f"BudgetSchedule: expected names of bonds, got {unknown[0]!r}.\n"
            f"{state.spec.name} has {', '.join(list(reasons)[:6]) or 'none'}."
        )
    if odd := [name for name in named if reasons[name] != "ok"]:
        raise SiteError(f"BudgetSchedule: expected a bond that can be cut, got {odd[0]!r}: {reasons[odd[0]]}.")
    found = tuple(named or [name for name, reason in reasons.items() if reason == "ok"])
    if not found:
        why = "; ".join(f"{name!r}: {reason}" for name, reason in list(reasons.items())[:3]) or "it has no bonds"
        raise SiteError(
            f"BudgetSchedule: expected an adapter with a bond that can be cut, got {state.spec.name} ({why})."
        )
    return found
