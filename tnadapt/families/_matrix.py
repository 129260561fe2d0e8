"""Families that are a product of matrices, with separate factors for each site."""

import math
from typing import Literal

from tnadapt._language import AdapterSpec, frozen, trainable
from tnadapt.families._family import family
from tnadapt.initializers import (
    Initializer,
    constant,
    kaiming_normal,
    kaiming_uniform,
    normal,
    ones,
    over_rank,
    over_sqrt_rank,
    raw,
    svd,
    uniform,
    zeros,
)

__all__ = ["lora", "lora_xs", "mtlora_tasks", "pissa", "randlora", "tlora", "vera"]


@family
def lora(
    *, alpha: float = 8.0, rank_stabilized: bool = False, gaussian: bool = False, frozen_a: bool = False
) -> AdapterSpec:
    """LoRA: dW = (alpha / r) B A, a pair of matrices per site (Hu et al. 2021, arXiv:2106.09685).

    A (r x in) starts uniform in +-1/sqrt(in), or normal with standard deviation 1/r if `gaussian`; B (out x r) at 0.
    `rank_stabilized`: scale alpha / sqrt(r), as in rsLoRA (arXiv:2312.03732). Alpha is 8 by default, as in PEFT.
    `frozen_a`: A is drawn separately for each site and not trained, as in LoRA-FA (arXiv:2308.03303).
    Trainable: r (in + out) per site, or r out. Rank of dW: at most r.
    """
    over = "site" if frozen_a else ""
    law = normal(fan="r r") if gaussian else kaiming_uniform("in")
    return AdapterSpec(
        name="lora",
        weight="out in",
        over=over,
        factors={
            "A": (frozen if frozen_a else trainable)(f"{over} r in", init=law),
            "B": trainable(f"{over} out r", init=zeros()),
        },
        scale=over_sqrt_rank("r", alpha=alpha) if rank_stabilized else over_rank("r", alpha=alpha),
    )


@family
def pissa(*, alpha: float = 8.0) -> AdapterSpec:
    """PiSSA: dW = (alpha / r) (B A - B0 A0), a LoRA that starts at the principal part of W (arXiv:2404.02948).

    W = U S V^T and the scale s = alpha / r give B0 = U_r sqrt(S_r / s) (out x r) and A0 = sqrt(S_r / s) V_r^T (r x in),
    as in PEFT: s B0 A0 is the principal part. Both are trained from there. The paper freezes W - B0 A0 and has no scale
    (s = 1); subtracting the start is equivalent.
    Trainable: r (in + out) per site; the file also contains the start, of the same size. Rank of dW: at most 2 r.
    """
    return AdapterSpec(
        name="pissa",
        weight="out in",
        factors={
            "A": trainable("r in"),
            "B": trainable("out r"),
        },
        scale=over_rank("r", alpha=alpha),
        start=svd("B", "A"),
    )


@family
def lora_xs(*, alpha: float = 16.0, sigma: float = 0.0, start: Literal["random", "svd"] = "random") -> AdapterSpec:
    """LoRA-XS: dW_s = (alpha / p) B_s R_s A_s, a small trained matrix inside a frozen pair (arXiv:2405.17604).

    `start="svd"`: A_s = S V^T (q x in) and B_s = U (out x p) of the host's W_s = U S V^T, as in the paper; both are
    saved in the file. "random": drawn for each site, uniform in +-1/sqrt(in) and +-1/sqrt(p), a variant in the code.
    R_s (p x q) starts at 0. The code draws it with standard deviation 1e-5, so that dW is not exactly 0: `sigma=1e-5`.
    Alpha is 16 in its GLUE runs. EDoRA (arXiv:2501.12067) is the svd pair with DoRA's normalized rows.
    Trainable: p q per site; frozen: p out + q in per site. Rank of dW: at most min(p, q).
    """
    begin: Literal["free", "zero"] = "free" if sigma else "zero"
    laws = (None, None) if start == "svd" else (kaiming_uniform("p"), kaiming_uniform("in"))
    return AdapterSpec(
        name="lora_xs",
        weight="out in",
        over="site",
        factors={
            "A": frozen("site q in", init=laws[1]),
            "R": trainable("site p q", init=normal(sigma) if sigma else zeros()),
            "B": frozen("site out p", init=laws[0]),
        },
        scale=over_rank("p", alpha=alpha),
        start=svd("B", "A", powers=(0, 1), scaled=False, start=begin) if start == "svd" else begin,
    )


@family
def mtlora_tasks(*, alpha: float = 1.0, learned_scale: bool = False, shared: bool = False) -> AdapterSpec:
    """MTLoRA for several tasks: dW_t = alpha B_t A_t, a pair per weight and task (arXiv:2403.20320).

    `shared` adds a pair that all tasks of a weight share: dW_t = alpha (B_t A_t + B A), mode `matrixv2` of the official
    code. In its mode `matrix`, a task's output has the task's own part only, and the shared pair is that of the shared
    output: a further task here. A site is one weight for one task, and needs the coordinate `task`. A_t (r x in) and
    A (p x in) start uniform in +-1/sqrt(in), B_t (out x r) and B (out x p) at 0. The scale is alpha, not divided by a
    rank; `learned_scale` trains factors s_t of each task and s of the shared pair that start at 1.
    The MTLoRA of arXiv:2403.07440 is `mtlora`.
    Trainable: r (in + out) per weight and task, plus p (in + out) per weight; scales one each. Rank of dW_t: r + p.
    """
    own = {"A": trainable("task r in", init=kaiming_uniform("in")), "B": trainable("task out r", init=zeros())}
    common = {"A_all": trainable("p in", init=kaiming_uniform("in")), "B_all": trainable("out p", init=zeros())}
    if learned_scale:
        own, common = own | {"s": trainable("task", init=ones())}, common | {"s_all": trainable("", init=ones())}
    return AdapterSpec(
        name="mtlora_tasks",
        weight="out in",
        over="task",
        factors=own | (common if shared else {}),
        terms=[" ".join(own), " ".join(common)] if shared else [],
        scale=raw(alpha),
    )


@family
def randlora(*, alpha: float = 640.0, short: Literal["in", "out"] = "in") -> AdapterSpec:
    """RandLoRA: dW = (alpha / r) sum_n B_n diag(l_n) A diag(g_n), random bases, trained diagonals (arXiv:2502.00987).

    A (r x in) and B_n (out x r) are frozen with variance 1, one set for all sites; l (r x n) starts at 0, g (n x in) at
    1/in. The long diagonals belong on the shorter axis: `short="out"` transposes the sum for a weight with out < in.
    Full rank takes n = min(in, out) / r bases, rounded up: rank={"r": 32, "n": 128} for 4096 x 4096. A bond has one
    size for all sites, so adapt weights with equal shorter axes together. PEFT orders the (n, r) of its two bases
    differently, which gives another random network of the same kind. Its defaults are alpha 640 and r 32.
    Trainable: r n + n min(in, out) per site; frozen: r (in + n out), once. Rank of dW: at most r n.
    """
    long = "out" if short == "in" else "in"
    unit = uniform(math.sqrt(3.0))
    return AdapterSpec(
        name="randlora",
        weight="out in",
        factors={
            "A": frozen(f"r {short}", init=unit),
            "B": frozen(f"{long} n r", init=unit),
            "l": trainable("r n", init=zeros()),
            "g": trainable(f"n {short}", init=Initializer("constant", 1.0, (short, short))),
        },
        scale=over_rank("r", alpha=alpha),
    )


@family
def tlora(*, alpha: float = 1.0) -> AdapterSpec:
    """TLoRA: dW_s = a_s (A_s B_s C_s)^T with A_s, C_s frozen and a trained scalar a_s (arXiv:2504.18735).

    A_s (in x r) starts normal with variance 1/(3r), C_s (r x out) normal with variance 1/(3 out), B_s (r x r) at 0, a_s
    at 1. A and C are drawn separately for each site. The scale is alpha itself, 1 in the paper. The official code has a
    dropout of 0.5 on the update; pass dropout to the binding, which applies it to x instead.
    Trainable: r^2 + 1 per site; frozen: r (in + out) per site. Rank of dW: at most r.
    """
    return AdapterSpec(
        name="tlora",
        weight="out in",
        over="site",
        factors={
            "A": frozen("site in p", init=kaiming_normal("p")),
            "B": trainable("site p q", init=zeros()),
            "C": frozen("site q out", init=kaiming_normal("out")),
            "a": trainable("site", init=ones()),
        },
        scale=raw(alpha),
    )


@family
def vera(*, d_initial: float = 0.1) -> AdapterSpec:
    """VeRA: dW = diag(b) B diag(d) A with A and B random, frozen and shared by all sites (arXiv:2310.11454).

    A (r x in) is uniform in +-sqrt(6/in) and B (out x r) in +-sqrt(6/r), both drawn at the largest in and out among
    the sites; a smaller weight reads their leading part. d (r) starts at `d_initial`, b (out) at 0. Scale 1.
    Trainable: out + r per site; frozen: r (largest in + largest out), once. Rank of dW: at most r.
    """
    return AdapterSpec(
        name="vera",
        weight="out in",
        factors={
            "A": frozen("r in", init=kaiming_uniform("in", slope=0.0)),
            "d": trainable("r", init=constant(d_initial)),
            "B": frozen("out r", init=kaiming_uniform("r", slope=0.0)),
            "b": trainable("out", init=zeros()),
        },
        scale=raw(),
    )
