"""Policies of training for attached adapters: call their `step()` once after each step of the optimizer."""

from tnadapt_torch.policies._methods import cola, rac_lora, relora, xgblora
from tnadapt_torch.policies._restarts import Restarts

__all__ = ["Restarts", "cola", "rac_lora", "relora", "xgblora"]
