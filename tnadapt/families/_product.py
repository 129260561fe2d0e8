"""Adapters that are an entrywise or a Kronecker product of two matrices."""

from tnadapt._factor import kaiming_uniform, over_rank, raw, trainable, zeros
from tnadapt._spec import AdapterSpec

__all__ = ["loha", "lokr"]


def loha(*, alpha: float = 8.0) -> AdapterSpec:
    """LoHa: dW = (alpha / p) (A1 B1) * (A2 B2), an entrywise product of two low-rank pairs (arXiv:2108.06098).

    A1 (out x p) and A2 (out x q) start uniform in +-1/sqrt(rank), B1 (p x in) in +-1/sqrt(in), B2 (q x in) at 0, as
    in PEFT. Trainable: (p + q) (in + out) a site. Rank of dW: at most p q.
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


def lokr(*, alpha: float = 8.0, low_rank: bool = True) -> AdapterSpec:
    """LoKr: dW = (alpha / r) C kron (A B), both axes split in two as evenly as they go (arXiv:2309.14859).

    C (o1 x i1) starts at 0, A (o2 x r) uniform in +-1/sqrt(r), B (r x i2) in +-1/sqrt(i2), as in PEFT. Without
    `low_rank` the second factor is one matrix A (o2 x i2), and the scale alpha itself.
    Trainable: o1 i1 + r (o2 + i2), or o1 i1 + o2 i2, a site. Rank of dW: at most min(o1, i1) min(o2, i2, r).
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
