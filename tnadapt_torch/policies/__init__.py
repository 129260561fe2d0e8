"""Policies of training for attached adapters: call their `step()` once after each step of the optimizer.

`load_chain` loads onto a model what a chain has learned.
"""

from tnadapt_torch.policies._budget import BudgetSchedule
from tnadapt_torch.policies._chain_file import load_chain
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
    "load_chain",
    "rac_lora",
    "relora",
    "xgblora",
]
