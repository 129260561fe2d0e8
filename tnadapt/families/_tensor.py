"""Families that treat all weights as one tensor: Tucker, CP and similar networks with shared factors."""

from typing import Literal

from tnadapt._errors import SpecError
from tnadapt._language import AdapterSpec, Decomposition, Start, at_most, frozen, required, trainable
from tnadapt.families._family import family
from tnadapt.initializers import (
    hosvd,
    identity,
    kaiming_uniform,
    normal,
    ones,
    over_rank,
    over_sqrt_rank,
    raw,
    svd,
    zeros,
)

__all__ = ["adaring", "lorta", "lotr", "tera"]


@family
def lotr(
    *,
    alpha: float = 1.0,
    over: str = "site",
    start: Literal["normal", "neutral", "svd"] = "normal",
) -> AdapterSpec:
    """LoTR: dW_s = (alpha / p) A G_s B^T; all sites s share A and B (arXiv:2402.01376).

    A (out x p) and B (in x q) start normal with standard deviation 1, the cores G_s (p x q) at 0. Other starts of the
    official init.py: "neutral" has A = 0, G_s = 1, and B the singular vectors of all weights stacked; "svd" has such
    vectors for A and B and G_s = A^T W_s B, the HOSVD, and subtracts its update, which the code does not.
    `over="site"` shares A and B among all weights of one shape, as in the official example; "layer" among the layers
    of one kind.
    Trainable: p out + S p q + q in. Rank of dW_s, and of all dW_s concatenated: at most min(p, q).
    """
    first, core, last = {
        "normal": (normal(), zeros(), normal()),  # G alone is zero: dW = 0 at the start, and G gets a gradient
        "neutral": (zeros(), identity(), None),
        "svd": (None, None, None),
    }[start]
    begins: dict[str, Start | Decomposition] = {
        "normal": "zero",
        "neutral": svd(None, "B", powers=(0, 0), start="zero"),
        "svd": hosvd("G", "A", "B"),
    }
    return AdapterSpec(
        name="lotr",
        weight="out in",
        over=over,
        factors={
            "A": trainable("out p", init=first),
            "G": trainable(f"{over} p q", init=core),
            "B": trainable("in q", init=last),
        },
        scale=over_rank("p", alpha=alpha),
        start=begins[start],
    )


@family
def lorta(
    *,
    alpha: float = 8.0,
    heads: Literal["out", "in"] = "out",
    over: Literal["layer kind", "layer", "kind", ""] = "layer kind",
    rank_stabilized: bool = False,
) -> AdapterSpec:
    """LoRTA: dW_lm[(h, j), i] = (alpha / r) sum_r A[i, r] B[j, r] H[h, r] L[l, r] M[m, r] (arXiv:2410.04060).

    With `heads="out"`: dW_{l,m}[(h, j), i] = (alpha / r) sum_r A[i, r] B[j, r] H[h, r] L[l, r] M[m, r], the layout of
    the authors' instruction-tuning code; `heads="in"` puts the heads on the in axis, as their GLUE code does.
    A starts uniform in +-1/sqrt(r), H, L and M in +-sqrt(6/r), B at 0, as in the GLUE code; the instruction-tuning code
    starts H and M in +-sqrt(6/(layers r)). If `over` leaves out the layer or the kind mode,
    each layer or each kind has its own tensor. Pass the number of heads as sizes={"head": 12} when binding.
    Trainable: r (d + d/H + H + L + M). Rank of dW: at most r.
    """
    whole, split = ("in", "out") if heads == "out" else ("out", "in")
    small = kaiming_uniform("r", slope=0.0)
    along = {mode: trainable(f"{mode} r", init=small) for mode in over.split()}
    return AdapterSpec(
        name="lorta",
        weight="(head dim) in" if split == "out" else "out (head dim)",
        sizes={"head": required()},
        over=over,
        factors={
            "A": trainable(f"{whole} r", init=kaiming_uniform("r")),
            "B": trainable("dim r", init=zeros()),
            "H": trainable("head r", init=small),
        }
        | {{"layer": "L", "kind": "M"}[mode]: factor for mode, factor in along.items()},
        scale=over_sqrt_rank("r", alpha=alpha) if rank_stabilized else over_rank("r", alpha=alpha),
    )


@family
def tera(*, out_order: int = 3, in_order: int = 3, alpha: float = 1.0) -> AdapterSpec:
    """TeRA, a reconstruction: dW_s = alpha G x_1 (U1 diag d_s1) .. x_N (UN diag d_sN), d trained (arXiv:2509.03234).

    dW_s as a tensor = alpha G x_1 (U1 diag d_s1) ... x_N (UN diag d_sN), N = out_order + in_order: the out axis splits
    into out_order modes, the in axis into in_order. G and every Un are frozen and shared by all sites; the vectors d
    are trained, one set per site.

    The official code, github.com/guyuxuan9/TeRA, could not be read. Known from the abstract: Tucker-like, frozen shared
    random factors, trained layer-specific diagonals, a rank that does not depend on the count. Chosen here, since the
    body of the paper was not available: the place of the diagonals (between Un and G, on every mode), orders 3 and 3,
    the initializers (Un normal with variance 1/R_n, G with variance 1/in, so that an entry of dW has variance 1/in if
    all d = 1), the start (d = 1, but 0 on the last out mode, so that dW = 0 and that vector has a gradient), scale
    alpha = 1. Counts cannot be compared with those of the paper. A rank is limited to the size of its mode; with all
    ranks at that limit, dW can have full rank.
    Trainable: S sum R_n; frozen: prod R_n + sum I_n R_n. Rank of dW: at most the product of the ranks on either side.
    """
    if out_order < 1 or in_order < 1:
        raise SpecError("tera", [f"out_order and in_order: expected at least 1, got {out_order} and {in_order}"])
    out_modes = [f"o{n}" for n in range(1, out_order + 1)]
    in_modes = [f"i{n}" for n in range(1, in_order + 1)]
    bonds = {mode: f"r_{mode}" for mode in (*out_modes, *in_modes)}
    last = out_modes[-1]
    return AdapterSpec(
        name="tera",
        weight=f"({' '.join(out_modes)}) ({' '.join(in_modes)})",
        over="site",
        factors={
            "G": frozen(" ".join(bonds.values()), init=normal(fan=" ".join(in_modes))),
            **{f"U_{mode}": frozen(f"{mode} {bond}", init=normal(fan=bond)) for mode, bond in bonds.items()},
            **{
                f"d_{mode}": trainable(f"site {bond}", init=zeros() if mode == last else ones())
                for mode, bond in bonds.items()
            },
        },
        scale=raw(alpha),
        sizes={bond: at_most(mode) for mode, bond in bonds.items()},
    )


@family
def adaring(*, alpha: float = 1.0) -> AdapterSpec:
    """AdaRing: dW_l[o, i] = alpha sum_abc U[a, o, b] V[b, i, c] G[l, c, a], a ring over layers (arXiv:2508.11870).

    U (a x out x b) and V (b x in x c) are shared by the layers of a kind, G_l (c x a) is the slice of one layer. U and
    G start normal with variance 1/b and 1/a, V at 0. Only the abstract was read, so starting values and scale are
    choices. The paper has rings for the matrices of inserted bottlenecks, of several ranks; here a ring updates a
    weight.
    Trainable: a b out + b c in + c a n for n layers. Rank of dW: at most b min(a, c).
    """
    return AdapterSpec(
        name="adaring",
        weight="out in",
        over="layer",
        factors={
            "U": trainable("a out b", init=normal(fan="b")),
            "V": trainable("b in c", init=zeros()),
            "G": trainable("layer c a", init=normal(fan="a")),
        },
        scale=raw(alpha),
    )
