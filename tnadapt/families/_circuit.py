"""Families that are circuits: gates that act on a few axes of the input, one after another."""

import math
from itertools import combinations

from tnadapt._errors import SpecError
from tnadapt._language import AdapterSpec, Factor, at_most, trainable
from tnadapt.families._family import family
from tnadapt.initializers import raw, uniform

__all__ = ["quanta"]


@family
def quanta(*, order: int = 4, alpha: float = 1.0) -> AdapterSpec:
    """QuanTA: dW = alpha (Q(T) - Q(start of T)), Q a circuit with a gate on every pair of axes (arXiv:2406.00132).

    The in axis splits into `order` modes, and a gate T_ab (n_a x n_b x n_a x n_b, out before in) acts on modes a < b:
    first on the last mode with each mode before it, then on the second to last, and so on, as in the official code. A
    gate starts uniform in +-sqrt(3/(n_a n_b)). Two successive gates on a mode are joined by a bond of at most the size
    of the mode: a rank of at least the largest size gives the paper's circuit, and a smaller rank narrows it. Pass the
    sizes as sizes={"i1": 16, "o1": 16, ...}. If out and in differ, the last gates change the sizes; the code pads.
    Trainable: sum over pairs of (n_a n_b)^2, per site. Rank of dW: full rank is possible, with bonds of full size.
    """
    if order < 2:  # noqa: PLR2004  (a pair)
        raise SpecError("quanta", [f"order: expected at least 2, since a gate joins two axes, got {order}"])
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
        start="centered",
        sizes={f"w{axis}_{n}": at_most(f"i{axis}") for axis in range(1, order + 1) for n in range(1, order - 1)},
    )
