"""Families that are a Tucker or a CP tensor, of one weight or of all weights stacked."""

import math
from typing import Literal

from tnadapt._errors import SpecError
from tnadapt._language import AdapterSpec, Factor, at_most, required, trainable
from tnadapt.families._family import family
from tnadapt.initializers import (
    Initializer,
    kaiming_normal,
    kaiming_uniform,
    normal,
    ones,
    orthogonal,
    raw,
    uniform,
    zeros,
)

__all__ = ["cara", "fact_tk", "flora", "tenslora"]


@family
def flora(*, kernel_axes: int = 0, gaussian: bool = False, alpha: float = 1.0) -> AdapterSpec:
    """FLoRA: dW = alpha G x_1 P_out x_2 P_in x_3 P_k1 ..., a Tucker tensor per weight (arXiv:2405.14739).

    `kernel_axes=2` is for conv kernels (out, in, kh, kw), 0 for linear layers. Every P (size x rank) starts normal with
    variance 1/(2 rank), or with `gaussian` standard deviation 0.02, as in the authors' code for language models; the
    core G at 0. A rank is limited to the size of its axis. The scale is alpha, not divided by a rank; the code for
    language models divides it by the rank plus 1e-5.
    Trainable: prod ranks + sum size rank, per site. Rank of dW: at most min(r_out, the product of the other ranks).
    """
    if kernel_axes < 0:
        raise SpecError("flora", [f"kernel_axes: expected at least 0, got {kernel_axes}"])
    axes = ["out", "in", *(f"k{n}" for n in range(1, kernel_axes + 1))]
    bonds = {axis: f"r_{axis}" for axis in axes}

    def law(bond: str) -> Initializer:
        return normal(0.02) if gaussian else kaiming_normal(bond, slope=math.sqrt(3.0))

    return AdapterSpec(
        name="flora",
        weight=" ".join(axes),
        factors={"G": trainable(" ".join(bonds.values()), init=zeros())}
        | {f"P_{axis}": trainable(f"{axis} {bond}", init=law(bond)) for axis, bond in bonds.items()},
        scale=raw(alpha),
        sizes={bond: at_most(axis) for axis, bond in bonds.items()},
    )


@family
def fact_tk(*, alpha: float = 1.0) -> AdapterSpec:
    """FacT-TK: dW_s = alpha V (C x_3 P_s) U^T, a Tucker tensor of all weights (arXiv:2212.03145).

    U (in x q) starts uniform in +-1/sqrt(in), V (out x p) at 0, the core C (p x q x t) in +-sqrt(3/(p q)), P (site x t)
    in +-sqrt(6/site). The official code has site + t there, but an initializer here depends only on a product of sizes.
    The code splits the feed-forward weights into blocks of d x d; each block is a site. The scale is alpha, not divided
    by a rank.
    Trainable: p out + q in + S t + p q t. Rank of dW_s, and of all dW_s concatenated: at most min(p, q).
    """
    return AdapterSpec(
        name="fact_tk",
        weight="out in",
        over="site",
        factors={
            "U": trainable("in q", init=kaiming_uniform("in")),
            "C": trainable("p q t", init=uniform(math.sqrt(3.0), fan="p q")),
            "P": trainable("site t", init=uniform(math.sqrt(6.0), fan="site")),
            "V": trainable("out p", init=zeros()),
        },
        scale=raw(alpha),
    )


@family
def cara(*, part: Literal["attention", "blocks"] = "attention", alpha: float = 1.0) -> AdapterSpec:
    """CaRA for attention: dW_s[(h, j), i] = alpha sum_r w[r] S[s, r] A[i, r] H[h, r] D[j, r] (openreview:vexHifrbJg).

    One CP tensor over the queries, keys and values of all layers. w starts at 1, S normal with variance 2/site (the
    official code has site + r, but an initializer here depends only on a product of sizes), H and D orthogonal, A at 0.
    Pass the number of heads as sizes={"head": 12}. The scale is alpha, not divided by a rank.

    `part="blocks"` is the paper's second tensor, without heads: dW_s[o, i] = alpha sum_r w[r] S[s, r] O[o, r] I[i, r]
    over the d x d blocks of the output projection and of the feed-forward weights, each a site; O at 0, I orthogonal.
    The whole method is these two adapters, which share nothing, and three trained biases, which are left out. In the
    blocks of the down projection the code has O on the in side and I on the out side. One spec cannot: a factor has the
    same axis of the weight at every site. Here O is on the out side of all.
    Trainable: r (S + in + H + d/H + 1), or r (S + in + out + 1). Rank of dW_s: at most r.
    """
    shared = {"w": trainable("r", init=ones()), "S": trainable("site r", init=normal(math.sqrt(2.0), fan="site"))}
    attention = {
        "A": trainable("in r", init=zeros()),
        "H": trainable("head r", init=orthogonal()),
        "D": trainable("dim r", init=orthogonal()),
    }
    blocks = {"O": trainable("out r", init=zeros()), "I": trainable("in r", init=orthogonal())}
    return AdapterSpec(
        name="cara",
        weight="(head dim) in" if part == "attention" else "out in",
        sizes={"head": required()} if part == "attention" else {},
        over="site",
        factors=shared | (attention if part == "attention" else blocks),
        scale=raw(alpha),
    )


@family
def tenslora(
    *,
    over: Literal["layer kind", "layer", "kind", ""] = "layer kind",
    heads: Literal["", "head dim", "dim head"] = "",
    cp: bool = False,
    alpha: float = 1.0,
) -> AdapterSpec:
    """TensLoRA: dW = alpha G x_1 U_in x_2 U_out x_3 U_layer x_4 U_kind, over any subset of modes (arXiv:2509.19391).

    Kind is the paper's qkv, layer its depth, and `heads` its att: the out axis splits into "head dim", the layout of
    torch, or into "dim head", as the official code unfolds it. Tucker: one rank per mode, not limited to its size; the
    core G starts at 0, every U (size x rank) orthogonal, those of layer and kind with rows of norm 1. `cp`: no core,
    one bond, U_in at 0; the initializers of the other factors are a choice here, and the network is a reading of the
    paper, since the official classes of this form raise an error when made. The scale is alpha, 1 in the code.
    Trainable: prod ranks + sum size rank, or r sum size. Rank of dW: at most min(r_in, r_out); with heads
    min(r_in, r_head r_dim); r with `cp`.
    """
    modes = ["in", *(heads.split() or ["out"]), *over.split()]
    bonds = {mode: "r" if cp else f"r_{mode}" for mode in modes}
    factors: dict[str, Factor] = {} if cp else {"G": trainable(" ".join(bonds.values()), init=zeros())}
    for mode, bond in bonds.items():
        factors[f"U_{mode}"] = trainable(f"{mode} {bond}", init=zeros() if cp and mode == "in" else orthogonal())
    return AdapterSpec(
        name="tenslora",
        weight=f"({heads}) in" if heads else "out in",
        sizes={"head": required()} if heads else {},
        over=over,
        factors=factors,
        scale=raw(alpha),
    )
