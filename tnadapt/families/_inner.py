"""Families that put a trained matrix between the two matrices of a LoRA."""

from typing import Literal

from tnadapt._language import AdapterSpec, Factor, Same, same, trainable
from tnadapt.families._family import family
from tnadapt.initializers import kaiming_uniform, normal, over_rank, zeros

__all__ = ["mtlora", "triadaptlora"]


@family
def mtlora(*, variant: Literal["shim", "icfm", "ctcm", "dtsm"] = "shim", alpha: float = 8.0) -> AdapterSpec:
    """MTLoRA: dW = (alpha / p) B T A, a trained transformation T between the pair of a LoRA (arXiv:2403.07440).

    T (p x q) is C for "shim", C C^T for "icfm" (C is p x s), C D for "ctcm" (p x s and s x q) and C + D for "dtsm".
    All ranks are one r in the code. There A (q x in), C and D start uniform in +-1/sqrt of their columns, B (out x p)
    at 0; here too. The code's embedding layer has C^T C for "icfm", all its others C C^T; its layer with fused query,
    key and value has one T for the ranks of all three, where each part is a site with its own T here. Alpha is 32 in
    its runs for text, and 8 here. The MTLoRA for several tasks, arXiv:2403.20320, is `mtlora_tasks`.
    Trainable: r (in + out) + r^2, or r (in + out) + 2 r^2 for "ctcm" and "dtsm", per site. Rank of dW: at most r.
    """
    wide, long = trainable("p q", init=kaiming_uniform("q")), trainable("p s", init=kaiming_uniform("s"))
    middle: dict[str, dict[str, Factor | Same]] = {
        "shim": {"C": wide},
        "icfm": {"C": long, "C_t": same("C", "q s")},
        "ctcm": {"C": long, "D": trainable("s q", init=kaiming_uniform("q"))},
        "dtsm": {"C": wide, "D": wide},
    }
    ends = {"A": trainable("q in", init=kaiming_uniform("in")), "B": trainable("out p", init=zeros())}
    return AdapterSpec(
        name="mtlora",
        weight="out in",
        factors=ends | middle[variant],
        terms=["B C A", "B D A"] if variant == "dtsm" else [],
        scale=over_rank("p", alpha=alpha),
    )


@family
def triadaptlora(*, alpha: float = 1.0) -> AdapterSpec:
    """TriAdaptLoRA, its network: dW = (alpha / p) B C A, a trained square between a LoRA's pair (arXiv:2501.08008).

    The paper splits the square between the pair into two triangles, B (L + U) A, not B and A. In its code L and U grow
    by block rows and block columns and together are a full matrix, C here, whose diagonal blocks the code has twice.
    Growing is a policy and not part of the network: which weights grow is chosen by the change of |L + U|. The stored
    copy of the code starts C and B at 0, so that nothing ever gets a gradient. Here C (p x q) starts at 0, and A
    (q x in) and B (out x p) normal with standard deviation 0.02, as in that code for A. It divides by the current rank
    plus 1e-5, so that every growth shrinks dW. Alpha is its first rank there by default, 1. The paper was not read.
    Trainable: p out + p q + q in per site. Rank of dW: at most min(p, q).
    """
    return AdapterSpec(
        name="triadaptlora",
        weight="out in",
        factors={
            "A": trainable("q in", init=normal(0.02)),
            "C": trainable("p q", init=zeros()),
            "B": trainable("out p", init=normal(0.02)),
        },
        scale=over_rank("p", alpha=alpha),
    )
