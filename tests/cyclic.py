"""Random specs with a cyclic factor in every position, and plans that convolve wherever they can, however small."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import strategies as st

from tnadapt import Adapter, AdapterSpec, frozen, grid, trainable
from tnadapt._planning import cost, spectrum, terms
from tnadapt.binding import Network
from tnadapt.initializers import Initializer, constant, normal, raw

LEGS = ("s", "a", "b")  # the sum of indices, and two summands
SIZES = (1, 2, 3, 4, 5, 8, 9)
CACHED = {"tnadapt._planning.plan": "_plan", "tnadapt_torch._run.lower": "lower_apply"}


@contextmanager
def convolving() -> Iterator[None]:
    """Plan with a convolution wherever one is possible, in a `with` block."""
    weigh = terms._Steps.weigh

    def prefer(self: terms._Steps, way: terms._Way) -> tuple[bool, float]:
        return not any(line.convolution for line in way.lines), weigh(self, way)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terms._Steps, "weigh", prefer)
        patch.setattr(spectrum, "SHORTEST", 1)
        patch.setattr(cost, "CALL", 0)
        _forget()
        yield
    _forget()


def _forget() -> None:
    for module, function in CACHED.items():
        if module in sys.modules:
            getattr(sys.modules[module], function).cache_clear()


def can_convolve(network: Network) -> bool:
    """Return whether the pattern of a drawn network can be replaced: by the definition, for its one term."""
    ends = [
        [name for name in network.nodes if name != "T" and leg in network.local_modes(name)]
        + [side for side, modes in (("x", network.in_modes), ("y", network.out_modes)) if leg in modes]
        for leg in LEGS
    ]
    return all(len(some) == 1 for some in ends) and len({some[0] for some in ends}) == len(LEGS)


@st.composite
def cyclic_adapters(draw: st.DrawFn, *, sizes: tuple[int, ...] = SIZES) -> Adapter:
    """Draw an adapter of one term with a cyclic factor T: each of its modes is in the weight or a bond to a factor.

    Some cannot be convolved: two modes of T are in the answer or in one operand, or one is a hyperedge.
    """
    place = {leg: draw(st.sampled_from(["in", "out", "bond", "bond"])) for leg in LEGS}
    inner, outer = (
        draw(st.permutations([side, *(leg for leg in LEGS if place[leg] == word)]))
        for side, word in (("i", "in"), ("o", "out"))
    )
    over = draw(st.sampled_from(["", "layer"]))
    factors = {
        "T": frozen(" ".join(LEGS), init=Initializer("cyclic", draw(st.sampled_from([1.0, 0.75])), fan=("i",))),
        "E": trainable("r i", init=normal()),
        "F": trainable("o r", init=normal()),
    }
    carried: dict[str, list[str]] = {}
    for leg in LEGS:
        is_more = draw(st.integers(0, 5)) == 0  # a hyperedge
        if place[leg] == "bond" or is_more:
            carried.setdefault(draw(st.sampled_from("ABC")), []).append(leg)
    for name, legs in carried.items():
        others = draw(st.lists(st.sampled_from(["i", "o", "r"]), unique=True, max_size=2))
        stacked = [over] if over and draw(st.booleans()) else []
        factors[name] = trainable(" ".join(draw(st.permutations([*stacked, *legs, *others]))), init=constant(1.0))
    spec = AdapterSpec(
        name="drawn",
        weight=f"({' '.join(outer)}) ({' '.join(inner)})",
        over=over if any("layer" in factor.modes for factor in factors.values()) else "",
        factors=factors,
        scale=raw(draw(st.sampled_from([1.0, 0.5]))),
        start="free",
    )
    size = draw(st.sampled_from(sizes))
    lengths = {"i": draw(st.integers(1, 3)), "o": draw(st.integers(1, 3)), **dict.fromkeys(LEGS, size)}
    shape = tuple(math.prod(lengths[mode] for mode in modes) for modes in (outer, inner))
    asked = lengths | {"r": draw(st.integers(1, 3))}
    return spec.bind(
        grid(layers=2, kinds={"q": shape}), sizes=asked, seed=draw(st.integers(0, 99)), overparametrized=True
    )
