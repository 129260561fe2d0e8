"""Optimizers that do not depend on how an update is split into factors: `Rite` and `Preconditioned`."""

from tnadapt_torch.optim._preconditioned import Preconditioned
from tnadapt_torch.optim._rite import Rite

__all__ = ["Preconditioned", "Rite"]
