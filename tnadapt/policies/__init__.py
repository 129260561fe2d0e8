"""Change the sizes of bonds while an adapter is trained: grow, cut and round them, and tell which slices matter.

Everything here is a pure function of an adapter and its params, flat dicts of numpy arrays. `grow`, `cut` and `sweep`
return a `Change`, which a binding applies to a model and to the moments of its optimizer.
"""

from tnadapt.policies._change import Change
from tnadapt.policies._cut import cut
from tnadapt.policies._grow import grow
from tnadapt.policies._importance import importance
from tnadapt.policies._reasons import bonds
from tnadapt.policies._sweep import sweep

__all__ = ["Change", "bonds", "cut", "grow", "importance", "sweep"]
