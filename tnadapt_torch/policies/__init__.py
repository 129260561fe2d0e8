"""Policies of training for attached adapters: call their `step()` once after each step of the optimizer."""

from tnadapt_torch.policies._budget import BudgetSchedule
from tnadapt_torch.policies._growth import GrowthSchedule
from tnadapt_torch.policies._methods import cola, rac_lora, relora, xgblora
from tnadapt_torch.policies._restarts import Restarts
from tnadapt_torch.policies._rounding import RoundingSchedule

__all__ = [
    "BudgetSchedule",
    "GrowthSchedule",
    "Restarts",
    "RoundingSchedule",
    "cola",
    "rac_lora",
    "relora",
    "xgblora",
]
