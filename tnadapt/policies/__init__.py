"""Policies of training: bonds that grow, are cut and rounded, what decides when, and chains of adapters.

Everything here is a pure function of adapters and their params, flat dicts of arrays, or an object of plain numbers.
`grow`, `cut` and `sweep` return a `Change`, which a binding applies to a model and to the moments of its optimizer.
`Budget`, `Growth` and `Rounding` decide, one `step` at a time, what is to change. `ranks_from_dimensions`,
`ranks_from_errors` and `select` decide before the training.
"""

from tnadapt.policies._budget import Budget
from tnadapt.policies._chain import Chain, Link
from tnadapt.policies._chain_file import load_chain, save_chain, save_chain_as_lora
from tnadapt.policies._change import Change
from tnadapt.policies._cut import cut
from tnadapt.policies._dimension import intrinsic_dimension, ranks_from_dimensions
from tnadapt.policies._error_ranks import ranks_from_errors
from tnadapt.policies._gates import gated, select
from tnadapt.policies._grow import grow
from tnadapt.policies._growth import Growth
from tnadapt.policies._hide import hide
from tnadapt.policies._importance import importance, tellers
from tnadapt.policies._reasons import bonds
from tnadapt.policies._rounding import Rounding
from tnadapt.policies._sweep import sweep
from tnadapt.policies._units import Unit, units

__all__ = [
    "Budget",
    "Chain",
    "Change",
    "Growth",
    "Link",
    "Rounding",
    "Unit",
    "bonds",
    "cut",
    "gated",
    "grow",
    "hide",
    "importance",
    "intrinsic_dimension",
    "load_chain",
    "ranks_from_dimensions",
    "ranks_from_errors",
    "save_chain",
    "save_chain_as_lora",
    "select",
    "sweep",
    "tellers",
    "units",
]
