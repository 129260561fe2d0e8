"""Families that turn the host's weight, or change its singular values."""

from typing import Literal

from tnadapt._errors import SpecError
from tnadapt._language import AdapterSpec, Factor, Same, frozen, like, same, trainable
from tnadapt.families._family import family
from tnadapt.initializers import constant, host, raw, uniform, zeros

__all__ = ["hra", "oft", "soda", "svdiff"]


@family
def oft(*, shared_blocks: bool = False) -> AdapterSpec:
    """OFT: dW = W R - W, with R orthogonal and block-diagonal along the in axis (arXiv:2306.07280).

    Block g of R (i x i) is the Cayley transform of X_g - X_g^T; X (g x i x i) starts at 0, so that R is 1. There
    is no rank: sizes={"i": 32}, PEFT's default, sets the size of a block, sizes={"g": 8} the number of blocks, and
    without either the in axis is split as evenly as possible. `shared_blocks`: one X (i x i) for all blocks, PEFT's
    block_share. PEFT stores the i (i - 1) / 2 numbers above the diagonal, and by default replaces the inverse by a few
    terms of its series (use_cayley_neumann). The limit of COFT and the dropout of blocks are left out.
    A rotation has no scale.
    Trainable: g i^2 per site, of which i (i - 1) / 2 per block matter. Rank of dW: full rank is possible.
    """
    return AdapterSpec(
        name="oft",
        weight="out (g i)",
        factors={
            "X": trainable("i a" if shared_blocks else "g i a", init=zeros(), map="cayley"),
            "W": frozen("out g i", init=host()),
            "W2": same("W", "out g a"),
        },
        terms=["W2 X", "- W"],
    )


@family
def hra(*, reflections: int = 8, start: Literal["centered", "free"] = "centered") -> AdapterSpec:
    """HRA: dW = W H(u1) H(u2) .. H(ur) - W, a product of Householder reflections of the inputs (arXiv:2405.17484).

    H(u) = 1 - 2 u u^T / |u|^2; u1 .. ur (in) start uniform. `start="free"` is that product, which changes the model at
    once. The paper starts the reflections in equal pairs, which cancel. Factors here have starts of their own: if
    "centered", each reflection is followed by its start, H(u) H(start of u), so that the product is orthogonal too, and
    1 at the start; what is subtracted is W times that, exactly. The Gram-Schmidt form and the penalty that keeps the u
    apart are left out. A reflection is a matrix of in x in numbers when it is used. A rotation has no scale.
    Trainable: r in per site. Rank of dW: at most r if "free", else 2 r; the bound that is stated is full rank.
    """
    if reflections < 1:
        raise SpecError("hra", [f"reflections: expected at least 1, got {reflections}"])
    uses = [
        (n, again) for n in range(1, reflections + 1) for again in ((False, True) if start == "centered" else (False,))
    ]
    ends = [*(f"b{n}" for n in range(len(uses))), "in"]
    factors: dict[str, Factor | Same] = {"W": frozen("out in", init=host()), "W2": same("W", "out b0")}
    for (n, again), one, other in zip(uses, ends[:-1], ends[1:], strict=True):
        if again:
            factors[f"u{n}_start"] = same(f"u{n}", f"{one} {other}", at_start=True)
        else:
            factors[f"u{n}"] = trainable(f"{one} {other}", init=uniform(), map="householder")
    product = " ".join(name for name in factors if name != "W")
    return AdapterSpec(
        name="hra",
        weight="out in",
        factors=factors,
        terms=[product] if start == "centered" else [product, "- W"],
        sizes={end: like("in") for end in ends[:-1]},
        start=start,
    )


@family
def svdiff(*, alpha: float = 1.0) -> AdapterSpec:
    """SVDiff: dW = alpha U diag(d) V^T, a shift of the singular values of W = U S V^T (arXiv:2303.11305).

    U (out x k) and V^T (k x in) are those of the host, with k = min(out, in), and are not stored; d (k) starts at 0.
    The paper keeps S + d from falling below 0, which matters only for d < -S and is left out. It has no alpha.
    Trainable: min(out, in) per site. Rank of dW: full rank is possible.
    """
    return AdapterSpec(
        name="svdiff",
        weight="out in",
        factors={
            "U": frozen("out k", init=host("left")),
            "d": trainable("k", init=zeros()),
            "V": frozen("k in", init=host("right")),
        },
        scale=raw(alpha),
    )


@family
def soda(*, order: int = 3, delta: float = 0.0) -> AdapterSpec:
    """SODA: dW = U diag(S + d) V^T (R1 x R2 x R3)^T - W, singular values shifted and inputs turned (arXiv:2405.21050).

    W = U S V^T is the host's weight. R1, R2, .. are `order` orthogonal matrices on modes of the in axis, Cayley
    transforms of numbers that start at 0, where the official code has Stiefel factors and an optimizer of their own:
    both move in the component of 1. d (k = min(out, in)) starts at `delta`, 1e-3 in that code, which changes the model
    at once. The code has one d per row, and fails for out > in. It keeps S + d from falling below 0; here it may.
    sizes={"i1": 6, "i2": 8, "i3": 16} gives its split of 768. A rotation has no scale.
    Trainable: k + i1^2 + i2^2 + i3^2 per site. Rank of dW: full rank is possible.
    """
    if order < 1:
        raise SpecError("soda", [f"order: expected at least 1, got {order}"])
    modes, ends, turns = ([f"{letter}{n}" for n in range(1, order + 1)] for letter in ("i", "a", "R"))
    inputs, turned = " ".join(modes), " ".join(ends)
    factors: dict[str, Factor | Same] = {
        turn: trainable(f"{mode} {end}", init=zeros(), map="cayley")
        for turn, mode, end in zip(turns, modes, ends, strict=True)
    }
    factors |= {
        "d": trainable("k", init=constant(delta)),
        "W": frozen(f"out {inputs}", init=host()),
        "W2": same("W", f"out {turned}"),
        "U": frozen("out k", init=host("left")),
        "V": frozen(f"k {inputs}", init=host("right")),
        "V2": same("V", f"k {turned}"),
    }
    return AdapterSpec(
        name="soda",
        weight=f"out ({inputs})",
        factors=factors,
        terms=[f"W2 {' '.join(turns)}", f"U d V2 {' '.join(turns)}", "- W"],
        start="free" if delta else "zero",
    )
