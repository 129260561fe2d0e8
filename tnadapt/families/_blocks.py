"""Families that update a weight block by block: a low-rank pair per block, or one matrix that is repeated as a tile."""

from tnadapt._language import AdapterSpec, frozen, trainable
from tnadapt.families._family import family
from tnadapt.initializers import kaiming_uniform, normal, ones, over_rank, raw, zeros

__all__ = ["btt", "gralora", "monarch", "mora"]


@family
def gralora(*, alpha: float = 8.0, hybrid: bool = False) -> AdapterSpec:
    """GraLoRA: block (o, i) of dW is (alpha / r) B_oi A_oi, a low-rank pair per block (arXiv:2505.20355).

    A (o1 x i1 x r x i2) starts uniform in +-1/sqrt(i2), B (o1 x i1 x o2 x r) at 0. The weight is split into o1 x i1
    blocks: sizes={"o1": 2, "i1": 2} for k = 2. The rank and alpha of PEFT are k times r and alpha here.
    `hybrid` adds a LoRA of rank h with the same scale: A_all (h x in) uniform in +-1/sqrt(in), B_all (out x h) at 0.
    PEFT divides both by k r + h: its alpha is (k r + h) / r times alpha here.
    Trainable: o1 i1 r (o2 + i2) per site, plus h (in + out). Rank of dW: at most o1 i1 r, plus h.
    """
    blocks = {
        "A": trainable("o1 i1 r i2", init=kaiming_uniform("i2")),
        "B": trainable("o1 i1 o2 r", init=zeros()),
    }
    whole = {
        "A_all": trainable("h i1 i2", init=kaiming_uniform("i1 i2")),
        "B_all": trainable("o1 o2 h", init=zeros()),
    }
    return AdapterSpec(
        name="gralora",
        weight="(o1 o2) (i1 i2)",
        factors=blocks | whole if hybrid else blocks,
        terms=["B A", "B_all A_all"] if hybrid else [],
        scale=over_rank("r", alpha=alpha),
    )


@family
def monarch(*, alpha: float = 1.0) -> AdapterSpec:
    """MoRe: dW = P2 perm P1, two block-diagonal matrices with a fixed permutation between them (arXiv:2408.17383).

    dW[(o1, o2), (i1, i2)] = alpha sum_t P2[o2, o1, i1, t] P1[i1, t, o2, i2]: i1 numbers the N blocks of P1, o2 those of
    P2; sizes={"i1": 4, "o2": 4} gives the default of 4 blocks. The block rank of the official code is N t; block ranks
    that N does not divide are left out. P1 starts uniform in +-1/sqrt(i2), P2 at 0. That code has no alpha, so it is 1.
    Trainable: t (o2 in + i1 out) per site. Rank of dW: at most o2 i1 t.
    """
    return AdapterSpec(
        name="monarch",
        weight="(o1 o2) (i1 i2)",
        factors={
            "P1": trainable("i1 t o2 i2", init=kaiming_uniform("i2")),
            "P2": trainable("o2 o1 i1 t", init=zeros()),
        },
        scale=raw(alpha),
    )


@family
def btt(*, alpha: float = 1.0) -> AdapterSpec:
    """BTT: dW[(o1, o2), (i1, i2)] = alpha sum_r L[o1, r, i1, o2] R[i1, i2, r, o1], a block train (arXiv:2406.06248).

    Published for training from scratch. As an adapter, L starts at 0, which is an option of the official code. R starts
    normal with variance 1/i2, without the official factor min(1, sqrt(out / in)), since an initializer here depends
    only on a product of sizes. The axes split as evenly as possible. Apart from scale and starting values, the network
    is that of GraLoRA with sqrt(out) x sqrt(in) blocks.
    Trainable: r (o1 in + i1 out) per site. Rank of dW: at most o1 i1 r.
    """
    return AdapterSpec(
        name="btt",
        weight="(o1 o2) (i1 i2)",
        factors={
            "R": trainable("i1 i2 r o1", init=normal(fan="i2")),
            "L": trainable("o1 r i1 o2", init=zeros()),
        },
        scale=raw(alpha),
    )


@family
def mora(*, alpha: float = 1.0) -> AdapterSpec:
    """MoRA of type 1: dW[o, i] = M[o mod o2, i mod i2], one matrix repeated as a tile (arXiv:2405.12130).

    M (o2 x i2) starts at 0; frozen vectors of ones (o1 and i1) repeat it. The official code uses a square matrix with
    as many entries as LoRA of rank r trains: sizes={"o2": n, "i2": n} with n = int(sqrt((in + out) r) + 1/2). Without
    sizes, the axes split evenly. If n does not divide an axis, that code wraps around, which no network can express:
    here an error lists the divisors. Type 6, with rotations, is left out. The scale is alpha, 1 in that code.
    Trainable: o2 i2 per site. Rank of dW: at most min(o2, i2).
    """
    return AdapterSpec(
        name="mora",
        weight="(o1 o2) (i1 i2)",
        factors={
            "M": trainable("o2 i2", init=zeros()),
            "rows": frozen("o1", init=ones()),
            "columns": frozen("i1", init=ones()),
        },
        scale=raw(alpha),
    )
