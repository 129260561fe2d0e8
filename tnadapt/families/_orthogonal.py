"""Families with orthogonal factors: a diagonal between two orthogonal matrices with few parameters."""

import math

from tnadapt._errors import SpecError
from tnadapt._language import AdapterSpec, Factor, SizeRule, frozen, like, trainable
from tnadapt.families._family import family
from tnadapt.initializers import controlled_z, identity, normal, raw, uniform, zeros

__all__ = ["householder", "quantum_peft"]


@family
def householder(*, alpha: float = 1.0) -> AdapterSpec:
    """Householder adapter: dW = alpha H(u) diag(s) H(v), a diagonal between two reflections (arXiv:2410.22952).

    H(v) = 1 - 2 v v^T / |v|^2, of which the first t columns are used; u (out) and v (in) start normal with standard
    deviation 1, s (t) at 0. Only the abstract of the paper was read, so starting values and scale are choices; its
    low-rank term is left out.
    Trainable: out + in + t per site. Rank of dW: at most t.
    """
    return AdapterSpec(
        name="householder",
        weight="out in",
        factors={
            "u": trainable("out a", init=normal(), map="householder"),
            "I": frozen("a t", init=identity()),
            "s": trainable("t", init=zeros()),
            "J": frozen("b t", init=identity()),
            "v": trainable("in b", init=normal(), map="householder"),
        },
        scale=raw(alpha),
        sizes={"a": like("out"), "b": like("in")},
    )


@family
def quantum_peft(*, qubits: int = 4, layers: int = 1, alpha: float = 1.0) -> AdapterSpec:
    """Quantum-PEFT: dW = alpha U diag(s) V^T, U and V circuits of qubits (arXiv:2503.05431).

    Both axes have size 2^q, with one mode per qubit. A circuit is a rotation RY of each qubit, then L times {CZ on the
    pairs (1,2), (3,4).., RY of each; CZ on (2,3), (4,5).., RY of each in these}: (2 L + 1) q - 2 L angles. They start
    uniform in +-pi, and s at 0; both are choices, since only the abstract and a summary of the paper were read. The
    paper's s has K entries, here all 2^q.
    Trainable: 2 ((2 L + 1) q - 2 L) + 2^q per site. Rank of dW: full rank is possible.
    """
    if qubits < 2 or qubits % 2:  # noqa: PLR2004
        raise SpecError(
            "quantum_peft",
            [f"qubits: expected an even number of at least 2, for gates on pairs, got {qubits}; write {qubits + 1}"],
        )
    wires = {f"b{qubit}": like(f"o{qubit}") for qubit in range(1, qubits + 1)}
    factors: dict[str, Factor] = {"s": trainable(" ".join(wires), init=zeros())}
    for side in "oi":
        gates, ends = _circuit(side, qubits, layers)
        factors |= gates
        wires |= ends
    split = [" ".join(f"{side}{qubit}" for qubit in range(1, qubits + 1)) for side in "oi"]
    return AdapterSpec(
        name="quantum_peft",
        weight=f"({split[0]}) ({split[1]})",
        factors=factors,
        scale=raw(alpha),
        sizes=wires,
    )


def _circuit(side: str, qubits: int, layers: int) -> tuple[dict[str, Factor], dict[str, SizeRule]]:
    """Return the gates from the bonds b1, b2, ... to the modes of an axis, and the mode that sets each bond's size."""
    every = list(range(1, qubits + 1))
    turns = [every, *(turn for _ in range(layers) for turn in (every, every[1:-1]))]
    pairs = [every, *(row for _ in range(layers) for row in (every, every[1:-1]))]
    ends = {qubit: f"b{qubit}" for qubit in every}
    gates: dict[str, Factor] = {}
    bonds: dict[str, SizeRule] = {}
    for level, (turned, paired) in enumerate(zip(turns, pairs, strict=True)):
        for first, second in zip(paired[::2], paired[1::2], strict=True) if level else ():
            gates[f"Z_{side}{level}_{first}"] = frozen(f"{ends[first]} {ends[second]}", init=controlled_z())
        for qubit in turned:
            is_last = not any(qubit in later for later in turns[level + 1 :])
            out = f"{side}{qubit}" if is_last else f"{side}{qubit}_{level}"
            bonds |= {} if is_last else {out: like(f"{side}{qubit}")}
            gates[f"R_{side}{level}_{qubit}"] = trainable(f"{out} {ends[qubit]}", init=uniform(math.pi), map="rotation")
            ends[qubit] = out
    return gates, bonds
