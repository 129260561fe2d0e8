"""Families based on the t-product, which multiplies matrices and convolves them circularly along the layers."""

from tnadapt._language import AdapterSpec, frozen, like, trainable
from tnadapt.families._family import family
from tnadapt.initializers import cyclic, raw, t_svd, tensor_cur

__all__ = ["lora_pt", "tcurlora"]

TUBES = {"g": like("layer"), "h": like("layer"), "k": like("layer")}


@family
def lora_pt(*, alpha: float = 1.0) -> AdapterSpec:
    """LoRA-PT: dW = alpha (U * S * V^T - U0 * S0 * V0^T), a t-SVD that starts at that of W (arXiv:2407.11292).

    The star is the t-product along the layers (Kilmer and Martin 2011): dW_l = sum of U_g S_h V_k over g + h + k = l,
    modulo the number of layers. U (layer x out x r), S (layer x r x q) and V (layer x q x in) start as the principal
    part of the t-SVD of the host's weights. The paper's code has their Fourier transforms instead: complex numbers, one
    set per frequency. The paper has no alpha.
    Trainable: n (r out + r q + q in) for n layers; the file also has the start, as many again. Rank: 2 n min(r, q).
    """
    return AdapterSpec(
        name="lora_pt",
        weight="out in",
        over="layer",
        factors={
            "U": trainable("g out r"),
            "S": trainable("h r q"),
            "V": trainable("k q in"),
            "C": frozen("layer g h k", init=cyclic()),
        },
        scale=raw(alpha),
        start=t_svd("U", "S", "V"),
        sizes=TUBES,
    )


@family
def tcurlora(*, alpha: float = 1.0) -> AdapterSpec:
    """tCURLoRA: dW = alpha (C * U * R - C * U0 * R), columns and rows of W with a trained link (arXiv:2501.02227).

    The star is the t-product along the layers, as in `lora_pt`. C (layer x out x p) contains the p columns with
    the largest norms over all frequencies, R (layer x q x in) the q rows with the largest norms within these columns;
    both are frozen and saved in the file. U (layer x p x q) starts at the pseudo-inverse of their intersection. The
    paper has no alpha.
    Trainable: n p q for n layers; frozen: n (p out + q in), and the start. Rank of dW: at most n min(p, q).
    """
    return AdapterSpec(
        name="tcurlora",
        weight="out in",
        over="layer",
        factors={
            "C": frozen("g out p"),
            "U": trainable("h p q"),
            "R": frozen("k q in"),
            "J": frozen("layer g h k", init=cyclic()),
        },
        scale=raw(alpha),
        start=tensor_cur("C", "U", "R"),
        sizes=TUBES,
    )
