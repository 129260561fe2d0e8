"""Families that are an entrywise or a Kronecker product of two matrices, or a sum of Kronecker products."""

from typing import Literal

from tnadapt._errors import SpecError
from tnadapt._language import AdapterSpec, Factor, trainable
from tnadapt.families._family import family
from tnadapt.initializers import kaiming_uniform, normal, over_rank, raw, svd, uniform, zeros

__all__ = ["abba", "kadaptation", "kradapter", "krona", "loha", "lokr", "superlora"]


@family
def loha(*, alpha: float = 8.0) -> AdapterSpec:
    """LoHa: dW = (alpha / p) (A1 B1) * (A2 B2), an entrywise product of two low-rank pairs (arXiv:2108.06098).

    A1 (out x p) and A2 (out x q) start uniform in +-1/sqrt(rank), B1 (p x in) in +-1/sqrt(in), B2 (q x in) at 0, as
    in PEFT. Trainable: (p + q) (in + out) per site. Rank of dW: at most p q.
    """
    return AdapterSpec(
        name="loha",
        weight="out in",
        factors={
            "A1": trainable("out p", init=kaiming_uniform("p")),
            "B1": trainable("p in", init=kaiming_uniform("in")),
            "A2": trainable("out q", init=kaiming_uniform("q")),
            "B2": trainable("q in", init=zeros()),
        },
        scale=over_rank("p", alpha=alpha),
    )


@family
def abba(*, alpha: float = 8.0) -> AdapterSpec:
    """ABBA: dW = alpha (B1 A1) * (B2 A2), an entrywise product that starts from the SVD of W (arXiv:2505.14238).

    W = U S V^T gives B1 = U_p sqrt(S_p) (out x p) and A1 = sqrt(S_p) V_p^T (p x in); A2 (q x in) starts uniform in
    +-sqrt(6 / in), B2 (out x q) at 0; all four are trained. The code multiplies by sqrt(alpha1 alpha2), where the
    alphas are equal by default, and does not divide by a rank.
    Trainable: (p + q) (in + out) per site. Rank of dW: at most p q.
    """
    return AdapterSpec(
        name="abba",
        weight="out in",
        factors={
            "A1": trainable("p in"),
            "B1": trainable("out p"),
            "A2": trainable("q in", init=kaiming_uniform("in", slope=0.0)),
            "B2": trainable("out q", init=zeros()),
        },
        scale=raw(alpha),
        start=svd("B1", "A1", scaled=False, start="zero"),
    )


@family
def lokr(*, alpha: float = 8.0, low_rank: bool = True) -> AdapterSpec:
    """LoKr: dW = (alpha / r) C kron (A B), both axes split in two as evenly as possible (arXiv:2309.14859).

    C (o1 x i1) starts at 0, A (o2 x r) uniform in +-1/sqrt(r), B (r x i2) in +-1/sqrt(i2), as in PEFT. Without
    `low_rank`, the second factor is one matrix A (o2 x i2), and the scale is alpha itself.
    Trainable: o1 i1 + r (o2 + i2), or o1 i1 + o2 i2, per site. Rank of dW: at most min(o1, i1) min(o2, i2, r).
    """
    small = {
        "A": trainable("o2 r", init=kaiming_uniform("r")),
        "B": trainable("r i2", init=kaiming_uniform("i2")),
    }
    whole = {"A": trainable("o2 i2", init=kaiming_uniform("i2"))}
    return AdapterSpec(
        name="lokr",
        weight="(o1 o2) (i1 i2)",
        factors={"C": trainable("o1 i1", init=zeros())} | (small if low_rank else whole),
        scale=over_rank("r", alpha=alpha) if low_rank else raw(alpha),
    )


@family
def krona(*, alpha: float = 1.0) -> AdapterSpec:
    """KronA: dW = alpha A kron B, one Kronecker product per site (arXiv:2212.10650).

    A (o1 x i1) and B (o2 x i2); the axes split in two as evenly as possible, or by `sizes`. B starts at 0, which is
    recalled from the paper, not read. A starts uniform in +-1/sqrt(i1), which is a choice here.
    Trainable: o1 i1 + o2 i2 per site. Rank of dW: at most min(o1, i1) min(o2, i2).
    """
    return AdapterSpec(
        name="krona",
        weight="(o1 o2) (i1 i2)",
        factors={
            "A": trainable("o1 i1", init=kaiming_uniform("i1")),
            "B": trainable("o2 i2", init=zeros()),
        },
        scale=raw(alpha),
    )


@family
def kadaptation(*, alpha: float = 1.0, factorized: bool = False) -> AdapterSpec:
    """KAdaptation: dW_l = alpha sum_n A_n^T kron (v_ln u_ln^T), a sum of Kronecker products (arXiv:2203.16329).

    The PHM form. A_n (i1 x o1) is shared by the layers of one kind; u_l (n x i2) and v_l (n x o2) belong to one layer.
    In the official code n, o1 and i1 are all 32: rank=32, sizes={"o1": 32, "i1": 32}. A starts uniform in +-0.01, u
    uniform in +-1/sqrt(i2), v at 0. In that code both u and v start at 0, so that neither ever gets a gradient.
    `factorized`: A_n = t_n s_n^T, as in that code. Its scale is 5 times alpha over a dimension; its trained bias is not
    an update of a weight and is left out.
    Trainable: n o1 i1, or n (o1 + i1), per kind, and n (o2 + i2) per site. Rank of dW: at most n min(o1, i1), or n.
    """
    small = uniform(0.01)
    shared = {
        False: {"A": trainable("n i1 o1", init=small)},
        True: {"t": trainable("n i1", init=small), "s": trainable("n o1", init=small)},
    }
    return AdapterSpec(
        name="kadaptation",
        weight="(o1 o2) (i1 i2)",
        over="layer",
        factors=shared[factorized]
        | {
            "u": trainable("layer n i2", init=kaiming_uniform("i2")),
            "v": trainable("layer n o2", init=zeros()),
        },
        scale=raw(alpha),
    )


@family
def superlora(*, parts: int = 2, alpha: float = 1.0) -> AdapterSpec:
    """SuperLoRA, a reconstruction: dW_s = alpha K_1s kron K_2 kron .., of Tucker tensors (arXiv:2403.11887).

    dW = alpha K_1s kron K_2 kron .., K_k = A_k C_k B_k^T: cores C_k (p_k x q_k), A_k (o_k x p_k), B_k (i_k x q_k);
    the first core has a third axis t, for S (site x t), which stacks the group over its sites. Axes split into `parts`.

    Recalled, not read: the Kronecker product of Tucker tensors over a group of weights. Chosen here: one group per
    weight shape, the sites in the first part only, the starting values (C_1 at 0, other cores normal, A, B and S normal
    with variance 1/rank), and the scale alpha. The fixed projection (fastfood) is not part of the network.
    Trainable: sum (o_k p_k + i_k q_k + p_k q_k), the first core t times, and S t. Rank: at most prod min(p_k, q_k).
    """
    if parts < 1:
        raise SpecError("superlora", [f"parts: expected at least 1, got {parts}"])
    factors: dict[str, Factor] = {"S": trainable("site t", init=normal(fan="t"))}
    for k in range(1, parts + 1):
        factors[f"C{k}"] = trainable("p1 q1 t", init=zeros()) if k == 1 else trainable(f"p{k} q{k}", init=normal())
        factors[f"A{k}"] = trainable(f"o{k} p{k}", init=normal(fan=f"p{k}"))
        factors[f"B{k}"] = trainable(f"i{k} q{k}", init=normal(fan=f"q{k}"))
    split = [" ".join(f"{side}{k}" for k in range(1, parts + 1)) for side in "oi"]
    return AdapterSpec(
        name="superlora",
        weight=f"({split[0]}) ({split[1]})",
        over="site",
        factors=factors,
        scale=raw(alpha),
    )


@family
def kradapter(*, short: Literal["in", "out"] = "in", alpha: float = 2.0) -> AdapterSpec:
    """KRAdapter: dW[(o1, o2), i] = alpha V[o1, i] U[o2, i], a Khatri-Rao product of two matrices (arXiv:2508.00230).

    U (o2 x in) starts at 0, V (o1 x in) uniform in +-sqrt(6/(26 o1)). `short="out"` splits the in axis instead, for
    out < in. The axis splits as evenly as possible; the official code takes o2 = int(sqrt(min(in, out))), rounds o1 up
    and cuts off the rows that are too many. The scale is alpha, 2 in that code.
    Trainable: (o1 + o2) in per site. Rank of dW: full rank is possible.
    """
    one, two = ("o1", "o2") if short == "in" else ("i1", "i2")
    return AdapterSpec(
        name="kradapter",
        weight="(o1 o2) in" if short == "in" else "out (i1 i2)",
        factors={
            "U": trainable(f"{two} {short}", init=zeros()),
            "V": trainable(f"{one} {short}", init=kaiming_uniform(one, slope=5.0)),
        },
        scale=raw(alpha),
    )
