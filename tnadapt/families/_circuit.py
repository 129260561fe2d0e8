"""Adapters that are a circuit: gates that act on a few axes of the input, one after another."""

import math
from itertools import combinations

from tnadapt._errors import SpecError
from tnadapt._language import AdapterSpec, Factor, trainable
from tnadapt.families._family import family
from tnadapt.initializers import raw, uniform

__all__ = ["quanta"]


@family
def quanta(*, order: int = 4, alpha: float = 1.0) -> AdapterSpec:
    """QuanTA: dW = alpha (Q(T) - Q(start of T)), Q a circuit with a gate on every pair of axes (arXiv:2406.00132).

    The in axis splits in `order` modes, and a gate T_ab (n_a x n_b x n_a x n_b, out before in) acts on modes a < b: the
    last mode with each one before it, then the last but one, and so on, as in the official code. A gate starts uniform
    in +-sqrt(3/(n_a n_b)). Between two gates a mode runs along a wire, a bond that is cut to the size of the mode: any
    rank from the largest of them gives the paper's circuit, and a smaller one narrows it. Say the modes as
    sizes={"i1": 16, "o1": 16, ...}. Where out and in differ the last gates change the sizes; the code pads instead.
    Trainable: sum over pairs of (n_a n_b)^2, a site. Rank of dW: full rank is possible, with wires that wide.
    """
    if order < 2:  # noqa: PLR2004  (a pair)
        raise SpecError("quanta", [f"order must be at least 2, for a gate joins two axes, got {order}"])
    ends = [f"i{axis}" for axis in range(order + 1)]
    times = [0] * (order + 1)
    gates: dict[str, Factor] = {}
    for second, first in combinations(range(order, 0, -1), 2):
        before = [ends[first], ends[second]]
        for axis in (first, second):
            times[axis] += 1
            ends[axis] = f"o{axis}" if times[axis] == order - 1 else f"w{axis}_{times[axis]}"
        gates[f"T{first}_{second}"] = trainable(
            " ".join([ends[first], ends[second], *before]), init=uniform(math.sqrt(3.0), fan=" ".join(before))
        )
    split = [" ".join(f"{side}{axis}" for axis in range(1, order + 1)) for side in "oi"]
    return AdapterSpec(
        name="quanta",
        weight=f"({split[0]}) ({split[1]})",
        factors=gates,
        scale=raw(alpha),
        centered=True,
        caps={f"w{axis}_{n}": f"i{axis}" for axis in range(1, order + 1) for n in range(1, order - 1)},
    )
