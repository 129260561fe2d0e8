"""Adapters that are a product of matrices, each site with factors of its own."""

from tnadapt._factor import (
    constant,
    frozen,
    kaiming_normal,
    kaiming_uniform,
    normal,
    ones,
    over_rank,
    over_sqrt_rank,
    raw,
    trainable,
    zeros,
)
from tnadapt._spec import AdapterSpec

__all__ = ["lora", "tlora", "vera"]


def lora(*, alpha: float = 8.0, rank_stabilized: bool = False, gaussian: bool = False) -> AdapterSpec:
    """LoRA: dW = (alpha / r) B A, a pair of matrices for each site (Hu et al. 2021, arXiv:2106.09685).

    A (r x in) starts uniform in +-1/sqrt(in), or normal of deviation 1/r if `gaussian`; B (out x r) at 0.
    `rank_stabilized`: scale alpha / sqrt(r), as in rsLoRA (arXiv:2312.03732). Alpha is 8 unless told, as in PEFT.
    Trainable: r (in + out) a site. Rank of dW: at most r.
    """
    return AdapterSpec(
        name="lora",
        weight="out in",
        factors={
            "A": trainable("r in", init=normal(fan="r r") if gaussian else kaiming_uniform("in")),
            "B": trainable("out r", init=zeros()),
        },
        scale=over_sqrt_rank("r", alpha=alpha) if rank_stabilized else over_rank("r", alpha=alpha),
    )


def tlora(*, alpha: float = 1.0) -> AdapterSpec:
    """TLoRA: dW_s = a_s (A_s B_s C_s)^T with A_s, C_s frozen and the scalar a_s learned (arXiv:2504.18735).

    A_s (in x r) starts normal of variance 1/(3r), C_s (r x out) normal of variance 1/(3 out), B_s (r x r) at 0, a_s
    at 1. A and C are drawn for each site anew. Scale: raw alpha, 1 in the paper. The official code has a dropout of
    0.5 on the update; pass dropout to the binding, which applies it to x instead.
    Trainable: r^2 + 1 a site; frozen: r (in + out) a site. Rank of dW: at most r.
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


def vera(*, d_initial: float = 0.1) -> AdapterSpec:
    """VeRA: dW = diag(b) B diag(d) A with A and B random, frozen and shared by all sites (arXiv:2310.11454).

    A (r x in) is uniform in +-sqrt(6/in) and B (out x r) in +-sqrt(6/r), both drawn at the largest in and out among
    the sites; a smaller weight reads their leading part. d (r) starts at `d_initial`, b (out) at 0. Scale 1.
    Trainable: out + r a site; frozen: r (largest in + largest out), once. Rank of dW: at most r.
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
