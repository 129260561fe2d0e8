"""Families whose update is a sum of several networks, some of whose factors many weights share."""

from typing import Literal

from tnadapt._language import AdapterSpec, Factor, frozen, trainable
from tnadapt.families._family import family
from tnadapt.initializers import Initializer, kaiming_uniform, over_rank, raw, uniform, zeros

__all__ = ["bslora", "nola", "rasa"]


@family
def nola(*, alpha: float = 1.0) -> AdapterSpec:
    """NOLA: dW = (alpha / r) (sum_k b_k V_k) (A0 + sum_n a_n U_n), combinations of random matrices (arXiv:2310.02556).

    U_n (r x in) and V_k (out x r) are frozen and uniform in +-1/sqrt of their number, A0 (r x in) is frozen and uniform
    in +-1/sqrt(in); all are drawn for each site and not stored. The coefficients a (n) and b (k) start at 0, and at
    first b alone has a gradient. The code for GPT-2 has 1024 matrices on either side, alpha 1, and draws them again at
    each step from a seed; here they are held in memory, r (n in + k out + in) numbers per site. Its code for LLaMA was
    not read.
    Trainable: n + k per site; frozen: r (n in + k out + in). Rank of dW: at most r.
    """
    return AdapterSpec(
        name="nola",
        weight="out in",
        over="site",
        factors={
            "A0": frozen("site r in", init=kaiming_uniform("in")),
            "U": frozen("site n r in", init=uniform(fan="n")),
            "a": trainable("site n", init=zeros()),
            "V": frozen("site k out r", init=uniform(fan="k")),
            "b": trainable("site k", init=zeros()),
        },
        terms=["b V A0", "b V a U"],
        scale=over_rank("r", alpha=alpha),
    )


@family
def rasa(*, alpha: float = 8.0) -> AdapterSpec:
    """RaSA: dW_l = B_l diag(d_l) A_l + B diag(e_l) A, a pair per layer and a pair for all layers (arXiv:2503.12576).

    A_l (p x in) and A (q x in) start uniform in +-1/sqrt(in), B_l (out x p) and B (out x q) at 0, d_l (p) at
    alpha / (2 p) and e_l (q) at alpha / (2 q): the scale is in these, and they are trained. B and A are shared by the
    layers of one kind. In the paper, k of the r ranks of each of L layers are shared: rank={"p": r - k, "q": k L}; its
    code has k = 1, r = 8 and alpha 8 by default.
    Trainable: p (in + out + 1) + q per site, and q (in + out) per kind. Rank of dW: at most p + q.
    """

    def half(rank: str) -> Initializer:
        return Initializer("constant", alpha / 2, (rank, rank))

    return AdapterSpec(
        name="rasa",
        weight="out in",
        over="layer",
        factors={
            "A": trainable("layer p in", init=kaiming_uniform("in")),
            "B": trainable("layer out p", init=zeros()),
            "d": trainable("layer p", init=half("p")),
            "A_all": trainable("q in", init=kaiming_uniform("in")),
            "B_all": trainable("out q", init=zeros()),
            "e": trainable("layer q", init=half("q")),
        },
        terms=["B d A", "B_all e A_all"],
        scale=raw(),
    )


@family
def bslora(*, mode: Literal["slice", "gate", "kron"] = "slice", alpha: float = 2.0) -> AdapterSpec:
    """BSLoRA: dW = alpha (B A + B_l A_l + B_all A_all), a pair of a weight, a layer, the model (openreview:IXYBuwCOMl).

    Ranks p, q and r. Every A starts uniform in +-1/sqrt(columns), every B at 0. "slice": a weight reads the leading
    part of the model's pair, in the code the middle. "gate": a shared pair is b x a, used as t (w^T B_l A_l u) v^T.
    "kron": it is used as (t kron B_l) (v kron A_l); sizes={"o2": 256, "i2": 256} gives the code's default. The vectors
    t, u, v and w belong to a site; v and w start uniform in +-1/sqrt(length), t and u in +-1. A layer's pair is shared
    by its weights of one shape, in the code by all. The code's scale is 2, whatever its alpha. The paper was not read.
    Trainable, "slice": p (in + out) per site, q (in + out) per layer and shape, r (in + out) once, at the largest
    sizes. Rank of dW: at most p + q + r; with "gate", p + 2.
    """
    outer, inner = {"slice": ("out", "in"), "gate": ("b", "a"), "kron": ("o2", "i2")}[mode]
    rows, columns = ("o1 o2", "i1 i2") if mode == "kron" else ("out", "in")
    gates = {  # each vector of a site: its mode, and the length from which its start follows
        "slice": {},
        "gate": {"t": ("out", ""), "w": ("b", "b"), "u": ("a", ""), "v": ("in", "in")},
        "kron": {"t": ("o1", ""), "v": ("i1", "i1")},
    }[mode]
    factors: dict[str, Factor] = {
        "A": trainable(f"layer kind p {columns}", init=kaiming_uniform(columns)),
        "B": trainable(f"layer kind {rows} p", init=zeros()),
    }
    terms = ["B A"]
    for name, over, rank in (("layer", "layer", "q"), ("all", "", "r")):
        pair = {
            "A": trainable(f"{over} {rank} {inner}", init=kaiming_uniform(inner), shared=not over),
            "B": trainable(f"{over} {outer} {rank}", init=zeros(), shared=not over),
        } | {gate: trainable(f"layer kind {axis}", init=uniform(fan=fan)) for gate, (axis, fan) in gates.items()}
        factors |= {f"{one}_{name}": factor for one, factor in pair.items()}
        terms.append(" ".join(f"{one}_{name}" for one in pair))
    return AdapterSpec(
        name="bslora",
        weight=f"({rows}) ({columns})",
        over="layer kind",
        factors=factors,
        terms=terms,
        scale=raw(alpha),
    )
