"""Families that multiply the host's weight, or the pattern of its zeros, entry by entry."""

from tnadapt._language import AdapterSpec, frozen, trainable
from tnadapt.families._family import family
from tnadapt.initializers import host, kaiming_uniform, ones, over_rank, raw, zeros

__all__ = ["hira", "losa", "ssb", "ssl"]


@family
def hira(*, alpha: float = 1.0) -> AdapterSpec:
    """HiRA: dW = alpha W * (B A), the host's weight times a low-rank matrix, entrywise (openreview:TwJrTz9cRS).

    A (r x in) starts uniform in +-1/sqrt(in), B (out x r) at 0, as in PEFT, which has no scale: alpha is 1. LieRA has
    the same product with the scale alpha / r: pass that as alpha. The weight W is a factor that is read from the host,
    and neither counted nor stored.
    Trainable: r (in + out) per site. Rank of dW: at most r times that of W, so full rank is possible.
    """
    return AdapterSpec(
        name="hira",
        weight="out in",
        factors={
            "W": frozen("out in", init=host()),
            "A": trainable("r in", init=kaiming_uniform("in")),
            "B": trainable("out r", init=zeros()),
        },
        scale=raw(alpha),
    )


@family
def ssl(*, alpha: float = 1.0) -> AdapterSpec:
    """SSL: dW = alpha (W diag(l) - W), a trained factor for each column of the host's weight (arXiv:2407.05417).

    l (in) starts at 1. The paper has no alpha. IA3 (arXiv:2205.05638) rescales the inputs of its feed-forward layers in
    this way, and elsewhere the outputs, with the bias.
    Trainable: in per site. Rank of dW: at most the number of changed columns, so full rank is possible.
    """
    return AdapterSpec(
        name="ssl",
        weight="out in",
        factors={"W": frozen("out in", init=host()), "l": trainable("in", init=ones())},
        scale=raw(alpha),
        start="centered",
    )


@family
def ssb(*, alpha: float = 1.0) -> AdapterSpec:
    """SSB: dW = alpha (diag(m) W diag(l) - W), a factor for each row and column of the weight (arXiv:2407.05417).

    m (out) and l (in) start at 1. The paper has no alpha. HyperAdapt (arXiv:2509.18629) has the same form, by its
    abstract.
    Trainable: in + out per site. Rank of dW: full rank is possible.
    """
    return AdapterSpec(
        name="ssb",
        weight="out in",
        factors={
            "W": frozen("out in", init=host()),
            "l": trainable("in", init=ones()),
            "m": trainable("out", init=ones()),
        },
        scale=raw(alpha),
        start="centered",
    )


@family
def losa(*, alpha: float = 16.0) -> AdapterSpec:
    """LoSA: dW = (alpha / r) M * (B A), a LoRA on the nonzero entries of a sparse weight (arXiv:2502.14816).

    M is 1 where the host's weight is not 0, so that every zero of W stays a zero of the merged weight. It is read from
    the host, and neither counted nor stored. A (r x in) starts uniform in +-1/sqrt(in), B (out x r) at 0. The paper
    also prunes W during training and chooses a rank for each weight by its error; both are policies. In its code A has
    8 rows, so that its ranks of 9 to 16 act like 8. Alpha is 16 there.
    Trainable: r (in + out) per site. Rank of dW: full rank is possible.
    """
    return AdapterSpec(
        name="losa",
        weight="out in",
        factors={
            "M": frozen("out in", init=host("mask")),
            "A": trainable("r in", init=kaiming_uniform("in")),
            "B": trainable("out r", init=zeros()),
        },
        scale=over_rank("r", alpha=alpha),
    )
