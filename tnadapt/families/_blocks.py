"""Families that update a weight block by block: a low-rank pair per block, or one matrix that is repeated as a tile."""

from typing import Literal

from tnadapt._errors import SpecError
from tnadapt._language import AdapterSpec, Factor, Same, frozen, like, same, trainable
from tnadapt.families._family import family
from tnadapt.initializers import Initializer, cyclic, host, kaiming_uniform, normal, ones, over_rank, raw, rotary, zeros

__all__ = ["bora", "btt", "c3a", "gralora", "miss", "monarch", "mora"]


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
def mora(*, variant: Literal[1, 6] = 1, alpha: float = 1.0) -> AdapterSpec:
    """MoRA: dW[o, i] = alpha M[o mod o2, i mod i2], one matrix as a tile, or turned blocks M R_g (arXiv:2405.12130).

    M (o2 x i2) starts at 0. `variant=1`: frozen vectors of ones (o1 and i1) repeat it. `variant=6`: block (o1, i1) is
    M R_i1 if i1 = o1 modulo the number of groups of the in axis, else 0; R_i1 turns group i1 by the angles of RoPE, so
    i2 must be even. The official code uses a square matrix with as many entries as LoRA of rank r trains:
    sizes={"o2": n, "i2": n} with n = int(sqrt((in + out) r) + 1/2), made even for type 6. Without sizes, the axes split
    evenly. If n does not divide an axis, that code wraps around, which no network can express: here an error lists the
    divisors. The scale is alpha, 1 in that code.
    Trainable: o2 i2 per site. Rank of dW: at most min(o2, i2), and min(o1, i1) times that for type 6.
    """
    if variant not in (1, 6):
        raise SpecError("mora", [f"variant: expected 1 or 6, got {variant}"])
    is_turned = variant == 6  # noqa: PLR2004  (the number in the official code)
    others = {"rows": frozen("o1", init=ones()), "columns": frozen("i1", init=ones())}
    if is_turned:
        others = {"R": frozen("i1 a i2", init=rotary()), "D": frozen("i1 o1", init=cyclic())}
    return AdapterSpec(
        name="mora",
        weight="(o1 o2) (i1 i2)",
        factors={"M": trainable("o2 a" if is_turned else "o2 i2", init=zeros())} | others,
        scale=raw(alpha),
        sizes={"a": like("i2")} if is_turned else {},
    )


@family
def c3a(*, alpha: float = 1.0) -> AdapterSpec:
    """C3A: dW[(o1, o2), (i1, i2)] = (alpha / in) c[o1, i1, (i2 - o2) mod b], circulant blocks (arXiv:2407.19342).

    c (o1 x i1 x b) starts at 0, as PEFT's does with init_weights=True; its default is Xavier uniform, which changes the
    model at once. b is the size of i2: sizes={"o2": 256, "i2": 256} gives blocks of 256. If o2 differs from i2, a block
    has the first o2 rows of the circulant matrix, and repeats them. The factor 1 / in is that of the code, which the
    frozen pattern J (i2 x b x o2) has here; PEFT has no alpha, so it is 1.
    Trainable: o1 i1 i2 per site. Rank of dW: full rank is possible.
    """
    return AdapterSpec(
        name="c3a",
        weight="(o1 o2) (i1 i2)",
        factors={
            "c": trainable("o1 i1 b", init=zeros()),
            "J": frozen("i2 b o2", init=Initializer("cyclic", 1.0, fan=("i1", "i2", "i1", "i2"))),
        },
        scale=raw(alpha),
        sizes={"b": like("i2")},
    )


@family
def miss(*, variant: Literal["", "mini", "bat"] = "", alpha: float = 1.0) -> AdapterSpec:
    """MiSS: dW[o, (i1, i2)] = alpha D[i2, o], a matrix that every group of inputs shares (arXiv:2409.15371).

    D (i2 x out) starts at 0, and ones (i1) repeat it. sizes={"i2": 64} is PEFT's default rank; it divides in here,
    where PEFT pads. "mini": D (i2 x o2) is repeated along the out axis too, and o2 is PEFT's mini_r. "bat", its block
    affine form: dW = W_oi B_o + B_o for the blocks of the host's weight W, with B (o1 x i2 x i2) at 0; the blocks are
    square, as with sizes={"o2": 64, "i2": 64}. PEFT has no alpha, so it is 1.
    Trainable: i2 out per site; i2 o2 with "mini". Rank of dW: at most i2; with "bat" full rank is possible.
    """
    factors: dict[str, Factor | Same] = {"ones": frozen("i1", init=ones())}
    if variant == "bat":
        factors |= {"W": frozen("o1 o2 i1 i2", init=host()), "W2": same("W", "o1 o2 i1 a")}
        factors |= {"B": trainable("o1 a i2", init=zeros()), "B2": same("B", "o1 o2 i2")}
    else:
        factors |= {"D": trainable("i2 o2" if variant else "i2 out", init=zeros())}
        factors |= {"rows": frozen("o1", init=ones())} if variant else {}
    return AdapterSpec(
        name="miss",
        weight="(o1 o2) (i1 i2)" if variant else "out (i1 i2)",
        factors=factors,
        terms=["W2 B", "B2 ones"] if variant == "bat" else [],
        scale=raw(alpha),
    )


@family
def bora(*, alpha: float = 8.0) -> AdapterSpec:
    """BoRA: block (g, h) of dW is (alpha / r) B_g diag(S_gh) A_h, a LoRA with a diagonal per block (arXiv:2508.06953).

    A (r x h x i) starts uniform in +-1/sqrt(in), B (g x o x r) at 0, S (g x h x r) at 1, with which it starts as a
    LoRA. sizes={"g": b, "h": b} gives the paper's b x b blocks. Only the abstract and a digest were read, so starting
    values and scale are choices. (BoRA of arXiv:2412.06441 is another method: DoRA with two magnitudes.)
    Trainable: r (in + out + g h) per site. Rank of dW: at most r min(g, h).
    """
    return AdapterSpec(
        name="bora",
        weight="(g o) (h i)",
        factors={
            "A": trainable("r h i", init=kaiming_uniform("h i")),
            "S": trainable("g h r", init=ones()),
            "B": trainable("g o r", init=zeros()),
        },
        scale=over_rank("r", alpha=alpha),
    )
