"""Families that are a tensor train: a chain of cores, each joined to the next by one bond."""

import math
from typing import Literal

from tnadapt._errors import SpecError
from tnadapt._language import AdapterSpec, Factor, required, trainable
from tnadapt.families._family import family
from tnadapt.initializers import (
    Initializer,
    kaiming_normal,
    kaiming_uniform,
    normal,
    orthogonal,
    over_rank,
    raw,
    tt_svd,
    zeros,
)

__all__ = ["dota", "fact_tt", "loretta", "lotr_tt", "metatt", "tt_lora"]

Start = Literal["zero", "centered", "free"]


@family
def fact_tt(*, alpha: float = 1.0) -> AdapterSpec:
    """FacT-TT: dW_s = alpha V S_s U^T, a tensor train with one core per weight (arXiv:2212.03145).

    U (in x q) starts uniform in +-1/sqrt(in), the cores S_s (p x q) in +-1/sqrt(q), V (out x p) at 0: the network
    of LoTR with another start. The code splits the feed-forward weights into blocks of d x d; each block is a site. The
    scale is alpha, not divided by a rank.
    Trainable: p out + S p q + q in. Rank of dW_s, and of all dW_s concatenated: at most min(p, q).
    """
    return AdapterSpec(
        name="fact_tt",
        weight="out in",
        over="site",
        factors={
            "U": trainable("in q", init=kaiming_uniform("in")),
            "S": trainable("site p q", init=kaiming_uniform("q")),
            "V": trainable("out p", init=zeros()),
        },
        scale=raw(alpha),
    )


@family
def dota(*, order: int = 3, alpha: float = 1.0) -> AdapterSpec:
    """DoTA: dW = alpha (MPO(T) - MPO(T0)), a matrix product operator that starts at that of W (arXiv:2412.20891).

    Both axes split into `order` modes; core T_k (r_(k-1) x o_k x i_k x r_k) starts as that of the TT-SVD of W. The
    paper freezes W - MPO(T0) and has alpha 1. Its abstract and a survey were read, not its body.
    Trainable: the sum of r_(k-1) o_k i_k r_k, per site; the file also contains the start, of the same size. Rank of dW:
    given by the minimum cut, which the bonds of an operator do not bound.
    """
    if not 1 < order < 10:  # noqa: PLR2004
        raise SpecError("dota", [f"order: expected 2 to 9, so that names sort like cores, got {order}"])
    bonds = ["", *(f"r{k}" for k in range(1, order)), ""]
    return AdapterSpec(
        name="dota",
        weight=" ".join(f"({' '.join(f'{side}{k}' for k in range(1, order + 1))})" for side in "oi"),
        factors={f"T{k}": trainable(f"{bonds[k - 1]} o{k} i{k} {bonds[k]}") for k in range(1, order + 1)},
        scale=raw(alpha),
        start=tt_svd(*(f"T{k}" for k in range(1, order + 1))),
    )


@family
def lotr_tt(*, out_order: int = 2, in_order: int = 2, alpha: float = 1.0) -> AdapterSpec:
    """LoTR with more than three cores: dW_s = (alpha / r) A1 .. AM G_s B1 .. BN over split axes (arXiv:2402.01376).

    The out axis splits into `out_order` modes with a core each, A (r_(k-1) x o_k x r_k), the in axis into `in_order`
    with cores B. The core G of the sites is between them, and r is the rank to the left of G. Orders 1 and 1 are LoTR.
    This is an interpretation: the paper's longer trains were not available, and its code has three cores. A and B start
    normal, so that an entry of the product of either chain has variance 1; G at 0.
    Trainable: sum r_(k-1) n_k r_k, with n = S for G. Rank of dW_s: at most either rank of G.
    """
    modes = [*_modes("lotr_tt", "o", out_order), "site", *_modes("lotr_tt", "i", in_order)]
    bonds = _bonds("r", modes)
    outs = [normal(fan=bond) for bond in ["", *bonds[: out_order - 1]]]
    ins = [normal(fan=bond) for bond in [*bonds[out_order + 1 :], ""]]
    names = [*(f"A{n}" for n in range(1, out_order + 1)), "G", *(f"B{n}" for n in range(1, in_order + 1))]
    cores = _train(modes, bonds, [*outs, zeros(), *ins])
    return AdapterSpec(
        name="lotr_tt",
        weight=_split(out_order, in_order),
        over="site",
        factors=dict(zip(names, cores, strict=True)),
        scale=over_rank(bonds[out_order - 1], alpha=alpha),
    )


@family
def metatt(*, order: Literal[4, 5] = 4, alpha: float = 1.0) -> AdapterSpec:
    """MetaTT, a reconstruction: dW_lm^T = alpha G_in G_l G_m G_out, one train over layers and kinds (arXiv:2506.09105).

    G_in (in x r1), G_l (r1 x r2) for each layer, G_m (r2 x r3) for each kind, G_out (r3 x out). `order=5` splits the
    out axis by heads, sizes={"head": 12}: G_head (r3 x head x r4), G_out (r4 x out/head). The scale is alpha.

    Read in the abstract: one train over the modes of all weights, whose sizes add up to the count. Recalled: the two
    orders, the order of the cores, a core at one end that starts at 0, inner cores that start orthogonal or at the
    identity. Chosen here: G_out at 0, G_in normal with variance 1/in, inner cores orthogonal for each layer and kind.
    Trainable: r (in + out) + r^2 (L + M), or r (in + out/H) + r^2 (L + M + H). Rank of dW: at most r.
    """
    if order not in (4, 5):
        raise SpecError("metatt", [f"order: expected 4, or 5 with heads, got {order}"])
    ends = ["out"] if order == 4 else ["head", "dim"]  # noqa: PLR2004  (the paper's name)
    modes = ["in", "layer", "kind", *ends]
    laws = [normal(fan="in"), *(orthogonal() for _ in modes[1:-1]), zeros()]
    cores = _train(modes, _bonds("r", modes), laws)
    return AdapterSpec(
        name="metatt",
        weight="out in" if ends == ["out"] else "(head dim) in",
        sizes={} if ends == ["out"] else {"head": required()},
        over="layer kind",
        factors=dict(zip([f"G_{mode}" for mode in modes], cores, strict=True)),
        scale=raw(alpha),
    )


@family
def tt_lora(*, out_order: int = 3, in_order: int = 3, start: Start = "zero", alpha: float = 1.0) -> AdapterSpec:
    """TT-LoRA: dW = alpha G1 G2 .. Gd, a tensor train over the split axes of one weight (arXiv:2408.01008).

    G_k (r_(k-1) x n_k x r_k); the first `out_order` modes n_k split the out axis, the others the in axis. The official
    code starts at the TT-SVD of a random matrix with variance 2/(9 in), where dW is not 0. Here the cores start normal
    and give an entry of dW the same variance: `start="free"` keeps this dW, "centered" subtracts it, and "zero" sets
    the last core to 0. The scale is alpha, not divided by a rank.
    Trainable: sum r_(k-1) n_k r_k per site. Rank of dW: at most the rank between out and in modes; centered: twice it.
    """
    modes = [*_modes("tt_lora", "o", out_order), *(inner := _modes("tt_lora", "i", in_order))]
    bonds = _bonds("r", modes)
    last = zeros() if start == "zero" else kaiming_normal(" ".join(inner), slope=math.sqrt(8.0))
    cores = _train(modes, bonds, [*(normal(fan=bond) for bond in bonds), last])
    return AdapterSpec(
        name="tt_lora",
        weight=_split(out_order, in_order),
        factors={f"G{n}": core for n, core in enumerate(cores, start=1)},
        scale=raw(alpha),
        start=start,
    )


@family
def loretta(*, out_order: int = 3, in_order: int = 3, start: Start = "zero", alpha: float = 16.0) -> AdapterSpec:
    """LoRETTA (rep): dW = (alpha / r) (X_A X_B)^T, a LoRA whose matrices are tensor trains (arXiv:2402.11417).

    X_A (in x r) has cores A_k over the in modes and a last core over r; X_B (r x out) has a core over r, then cores B_k
    over the out modes; sizes={"r": 8}, rank=5 for trains of rank 5. The official shape for 768 x 8 is [8, 8, 12, 8];
    for 4096 x 8 it is [16, 16, 8, 4, 4], where in and r share a core, but not here. There, an entry of X starts normal
    with variance 1/(in + r) and dW is not 0; here 1/in and 1/out, with `start` as in TT-LoRA: "zero" sets the last core
    of X_B to 0. The bottleneck form (adp) is not linear and so not an update of a weight. Alpha is 16 there.
    Trainable: sum r_(k-1) n_k r_k of both trains, per site. Rank of dW: at most r and its neighbours; centered: twice.
    """
    ins, outs = [*_modes("loretta", "i", in_order), "r"], ["r", *_modes("loretta", "o", out_order)]
    a_bonds, b_bonds = _bonds("a", ins), _bonds("b", outs)
    a_laws = [normal(fan=bond) for bond in a_bonds]
    last = zeros() if start == "zero" else normal(fan=" ".join(outs[1:]))
    a_cores = _train(ins, a_bonds, [*a_laws, normal(fan=" ".join(ins[:-1]))])
    b_cores = _train(outs, b_bonds, [*(normal(fan=bond) for bond in b_bonds), last])
    return AdapterSpec(
        name="loretta",
        weight=_split(out_order, in_order),
        factors={f"A{n}": core for n, core in enumerate(a_cores, start=1)}
        | {f"B{n}": core for n, core in enumerate(b_cores, start=1)},
        scale=over_rank("r", alpha=alpha),
        start=start,
    )


def _modes(family: str, side: Literal["o", "i"], order: int) -> list[str]:
    """Return the modes of a split axis. Raises SpecError unless `order` is at least 1."""
    if order < 1:
        raise SpecError(family, [f"{'out' if side == 'o' else 'in'}_order: expected at least 1, got {order}"])
    return [f"{side}{n}" for n in range(1, order + 1)]


def _split(out_order: int, in_order: int) -> str:
    """Return the notation of a weight whose axes split into this many modes."""
    sides = (("o", out_order), ("i", in_order))
    return " ".join(f"({' '.join(f'{side}{n}' for n in range(1, order + 1))})" for side, order in sides)


def _bonds(letter: str, modes: list[str]) -> list[str]:
    """Return the names of the bonds between neighbours."""
    return [f"{letter}{n}" for n in range(1, len(modes))]


def _train(modes: list[str], bonds: list[str], laws: list[Initializer]) -> list[Factor]:
    """Make the cores, each with the bond to its left, its mode and the bond to its right."""
    ends = ["", *bonds, ""]
    return [
        trainable(f"{left} {mode} {right}", init=law)
        for left, mode, right, law in zip(ends[:-1], modes, ends[1:], laws, strict=True)
    ]
