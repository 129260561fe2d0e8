"""The DMRG-like schedule of MetaTT for an attached adapter: its bonds are rounded at given steps."""

import numpy as np
import numpy.typing as npt
import torch

from tnadapt import SiteError
from tnadapt.policies import Rounding, bonds, sweep
from tnadapt_torch._state import AdapterState
from tnadapt_torch.policies._schedule import Schedule, Shapes

__all__ = ["RoundingSchedule"]

Array = npt.NDArray[np.float64]


class RoundingSchedule(Schedule[Rounding]):
    """Round the bonds of an adapter at given steps to their leading singular values.

    `errors` has the discarded singular values of each bond at the last sweep.
    """

    kind = Rounding

    def __init__(
        self,
        state: AdapterState,
        optimizer: torch.optim.Optimizer,
        policy: Rounding,
        *,
        tol: float | None = None,
        bond: str | None = None,
        shapes: Shapes = "change",
    ) -> None:
        """Begin a schedule.

        Args:
            state: the adapter.
            optimizer: the optimizer of its factors. Its moments are brought to the new basis.
            policy: the ranks at steps; it is copied.
            tol: the smallest singular value to keep at a sweep, relative to the largest one of the bond.
            bond: the name of a bond; by default every bond that can be rounded.
            shapes: "change" cuts the bonds. "keep" leaves zeros instead, and `finish` cuts them: for parameters that
                cannot change shape, as under DistributedDataParallel or fully_shard.

        Raises:
            SiteError: the adapter is merged, detached or under PEFT; or no bond can be rounded.
        """
        super().__init__(state, optimizer, policy, shapes)
        self.tol, self.bond = tol, bond
        self.errors: dict[str, Array] = {}
        _check(state, bond, shapes)

    def _act(self, policy: Rounding) -> None:
        state = self.state
        if (rank := policy.step()) is not None:
            change = sweep(state.adapter, state.arrays(), rank=rank, tol=self.tol, bond=self.bond)
            if self.shapes == "change":
                state.resize(change, self.optimizer)
            else:
                self.hidden.take(change)
            self.errors = dict(change.errors)
        if self.shapes == "keep":
            self.hidden.apply()


def _check(state: AdapterState, bond: str | None, shapes: Shapes) -> None:
    """Raise SiteError unless there is a bond to round, or to hide slices of."""
    able = bonds(state.adapter, "sweep")
    named = [name for name in able if bond is None or bond in (name, name.rpartition(".")[2])]
    reasons = {name: able[name] for name in named if able[name] != "ok"}
    chosen = [name for name in named if able[name] == "ok"]
    if shapes == "keep" and chosen:
        hidden = bonds(state.adapter, "hide")
        reasons |= {name: hidden[name] for name in chosen if hidden[name] != "ok"}
        chosen = [] if any(hidden[name] != "ok" for name in chosen) else chosen
    if not chosen or (bond is not None and reasons):
        why = "; ".join(f"{name!r}: {reason}" for name, reason in list(reasons.items())[:3]) or f"no bond {bond!r}"
        raise SiteError(
            f"RoundingSchedule: expected an adapter with bonds that can be rounded, got {state.spec.name} ({why}).\n"
            "bonds(adapter, 'sweep') says what can be rounded."
        )
