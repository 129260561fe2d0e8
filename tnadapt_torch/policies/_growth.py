"""TriAdaptLoRA's growth for an attached adapter: bonds of some groups grow while it is trained."""

from collections.abc import Sequence

import torch

from tnadapt.policies import Growth, Unit, grow, units
from tnadapt_torch._sharded import whole
from tnadapt_torch._state import AdapterState
from tnadapt_torch.policies._schedule import Schedule

__all__ = ["GrowthSchedule"]


class GrowthSchedule(Schedule[Growth]):
    """Grow the bonds of the groups whose factors grew most, up to a sum of ranks. A growth changes no update.

    Shapes have to change: under DistributedDataParallel or fully_shard it is refused.
    """

    kind = Growth

    def __init__(
        self,
        state: AdapterState,
        optimizer: torch.optim.Optimizer,
        policy: Growth,
        *,
        bonds: Sequence[str] | None = None,
        seed: int | None = None,
    ) -> None:
        """Begin a schedule.

        Args:
            state: the adapter.
            optimizer: the optimizer of its factors. Its moments get zeros in new slices.
            policy: how much grows at which step; it is copied.
            bonds: names of bonds that grow, as "r" or "0.q.r"; by default all that can. Those of a group grow together.
            seed: the seed of the new values; that of the adapter by default.

        Raises:
            SiteError: the adapter is merged, detached or under PEFT; or a bond cannot grow.
        """
        super().__init__(state, optimizer, policy)
        self.bonds, self.seed = bonds, seed
        units(state.adapter, bonds)

    def _act(self, policy: Growth) -> None:
        state = self.state
        found = units(state.adapter, self.bonds)
        ranks = {name: unit.rank for name, unit in found.items()}
        limits = {name: unit.limit for name, unit in found.items() if unit.limit is not None}
        norms = {name: self._norm(unit) for name, unit in found.items()} if policy.is_due else {}
        more = policy.step(norms, ranks, limits)
        by = {bond: number for name, number in more.items() for bond in found[name].bonds}
        if by:
            state.resize(grow(state.adapter, state.arrays(), by, seed=self.seed), self.optimizer)

    def _norm(self, unit: Unit) -> float:
        params = self.state.params()
        squares = [whole(params[name].detach()).double().square().sum().item() for name in unit.entries]
        return float(sum(squares) ** 0.5)

    @property
    def _can_keep(self) -> bool:
        return False
