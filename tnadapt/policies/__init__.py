"""Policies of training: bonds that grow, are cut and rounded, and chains of adapters trained one after another.

Everything here is a pure function of adapters and their params, flat dicts of arrays. `grow`, `cut` and `sweep` return
a `Change`, which a binding applies to a model and to the moments of its optimizer.
"""

from tnadapt.policies._chain import Chain, Link
from tnadapt.policies._chain_file import load_chain, save_chain, save_chain_as_lora
from tnadapt.policies._change import Change
from tnadapt.policies._cut import cut
from tnadapt.policies._grow import grow
from tnadapt.policies._importance import importance
from tnadapt.policies._reasons import bonds
from tnadapt.policies._sweep import sweep

__all__ = [
    "Chain",
    "Change",
    "Link",
    "bonds",
    "cut",
    "grow",
    "importance",
    "load_chain",
    "save_chain",
    "save_chain_as_lora",
    "sweep",
]
