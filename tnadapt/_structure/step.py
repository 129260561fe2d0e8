"""The size of the first step of an optimizer, and the learning rates of factors that are in balance with it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError
from tnadapt._frozen import FrozenMap
from tnadapt._language import (
    LORA_STEP,
    START,
    Adapter,
    Group,
    Move,
    Network,
    expect_adapter,
    expect_params,
    mean_square,
    moves_of,
    node_step,
    total_of,
    unknown_starts,
)
from tnadapt._signature import answers

__all__ = ["KAPPA", "Balanced", "StepSize", "balanced_rates", "step_size"]

KAPPA = 6.0  # steps that a factor at 0 goes one way before it has its size; see docs/explanation/learning_rate.md


@dataclass(frozen=True)
class StepSize:
    """How far the first step at a learning rate of 1 goes, at the sites of one group.

    Args:
        update: the RMS of an entry of dW after one step of Adam, Lion or sign descent.
        output: the RMS of dW x, for an x of RMS 1 that the step has not seen: update times the root of the in axis.
        decrease: the decrease of the loss by one step of SGD, per squared entry of the gradient of dW, on average.
        parts: the share of each factor that moves in `update`; their squares add up to its square.
        coherence: by how much `update` is larger than for independent signs, since those of a gradient follow the
            other factors. It is above 1 where a rank exceeds what it is joined to.
        rates: for each trained factor, the multiple of the learning rate that is in balance with the factors that move.
        formula: `update` in sizes and the scale, without `coherence`.
    """

    update: float
    output: float
    decrease: float
    parts: Mapping[str, float]
    coherence: float
    rates: Mapping[str, float]
    formula: str

    @property
    def of_lora(self) -> float:
        """`output` as a multiple of that of LoRA of rank 8 with alpha 8."""
        return self.output / LORA_STEP

    def __str__(self) -> str:
        """Return a line such as: update 0.098 = |scale| sqrt(r / (3 in)), output 1.57 (0.96 of LoRA); rates ..."""
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in self.rates.items())
        return (
            f"update {self.update:.4g} ({self.formula}), output {self.output:.4g}, {self.of_lora:.3g} of LoRA r=8; "
            f"balanced rates {rates}"
        )


@answers(SiteError)
def step_size(adapter: Adapter, params: Mapping[str, npt.ArrayLike] | None = None) -> dict[str, StepSize]:
    """Return how far the first step of an optimizer goes: name of a group -> its `StepSize`.

    It follows from the spec and the sizes: dW is linear in each factor, the sign of each entry of a gradient is as
    likely + as -, and the mean squares of the starting values are known. No array is made.

    Args:
        adapter: a spec bound to sites.
        params: the starting values, as `init(adapter, weights)` returns them. They are needed where values are read
            from the host; the others are not looked at. Where the update keeps starting values, under "<name>:start",
            those are taken, so that trained values may stand beside them.

    Raises:
        SiteError: a start is read from the host, and params are missing, lack it, or have values that are not finite.
    """
    expect_adapter(adapter, "step_size")
    if params is not None:
        expect_params(params, "step_size")
    known: dict[object, StepSize] = {}  # groups of one network agree, unless their values are read
    is_read = bool(unknown_starts(adapter.spec))
    found = {}
    for group in adapter.groups:
        key = group.name if is_read else id(group.network)
        if key not in known:
            known[key] = _step_of(adapter, group, _squares(adapter, group, params))
        found[group.name] = known[key]
    return found


def balanced_rates(adapter: Adapter, params: Mapping[str, npt.ArrayLike] | None = None) -> dict[str, "Balanced"]:
    """Return the trained entries of params that have the rate of one another: label -> factor, multiple and names.

    The label is the name of a factor; or that of an entry, the first one with the multiple, if those of a factor have
    several. An entry that several groups share gets the smallest of its multiples, so that no group goes further than
    it should. Raises SiteError as `step_size` does.
    """
    sizes, multiples = step_size(adapter, params), dict[str, dict[str, float]]()
    for group in adapter.groups:
        for factor, rate in sizes[group.name].rates.items():
            known, name = multiples.setdefault(factor, {}), adapter.slot_name(group, factor)
            known[name] = min(rate, known.get(name, math.inf))
    found = {}
    for factor, known in multiples.items():
        by_rate: dict[float, list[str]] = {}
        for name, rate in known.items():
            by_rate.setdefault(rate, []).append(name)
        for rate, names in by_rate.items():
            found[factor if len(by_rate) == 1 else names[0]] = Balanced(factor, rate, tuple(names))
    return found


@dataclass(frozen=True)
class Balanced:
    """Entries of params of one factor with one rate, as a multiple of the learning rate."""

    factor: str
    rate: float
    names: tuple[str, ...]


def _squares(adapter: Adapter, group: Group, params: Mapping[str, npt.ArrayLike] | None) -> dict[str, float]:
    """Return the mean squares of the factors of a group that are read from the host, over all of its sites."""
    names = unknown_starts(adapter.spec)
    if not names:
        return {}
    if params is None:
        raise SiteError(
            f"step_size: expected starting values, since {', '.join(names)} of {adapter.spec.name} "
            f"{'is' if len(names) == 1 else 'are'} read from the host's weights, got none.\n"
            "Pass step_size(adapter, init(adapter, weights))."
        )
    found: dict[str, list[float]] = {name: [] for name in names}
    for site in group.sites:
        parts = adapter.address(site).parts.items()
        own = {group.network.nodes[node].factor: part for node, part in parts if not part.at_start}
        for factor in names:
            if (part := own.get(factor)) is None:
                continue
            if part.name not in params:
                raise SiteError(
                    f"params: expected an array {part.name!r}, got none.\nTake it from init(adapter, weights)."
                )
            start = part.name + START  # what is trained may be other values by now
            values = np.asarray(params[start if start in params else part.name], dtype=np.float64)
            values = values if part.factor.init.is_host else values[part.cut]
            with np.errstate(over="ignore"):
                square = float(np.square(values).mean())
            if not square < math.inf:
                raise SiteError(
                    f"params: expected starting values whose mean square is finite, got some in {part.name!r} where "
                    f"it is {square}.\nTake them from init(adapter, weights)."
                )
            found[factor].append(square)
    return {name: math.fsum(squares) / len(squares) for name, squares in found.items()}


def _step_of(adapter: Adapter, group: Group, squares: Mapping[str, float]) -> StepSize:
    network, made_for = group.network, partial(adapter.sizes_made_for, group)
    moves = moves_of(adapter.spec, network, made_for, squares)
    parts: dict[str, float] = {}
    plain = 0.0
    for name in dict.fromkeys(move.factor for move in moves):
        rough, follows = _square_of(network, [move for move in moves if move.factor == name])
        plain, parts[name] = plain + rough, rough * follows
    update, plain = math.sqrt(math.fsum(parts.values())), math.sqrt(plain)
    return StepSize(
        update=update,
        output=update * math.sqrt(network.volume(network.in_modes)),
        decrease=plain**2,
        parts=FrozenMap({name: math.sqrt(square) for name, square in parts.items()}),
        coherence=update / plain if plain else 1.0,
        rates=FrozenMap(_rates(adapter, group, {*parts}, squares)),
        formula=_formula(moves),
    )


def _square_of(network: Network, moves: Sequence[Move]) -> tuple[float, float]:
    """Return what the moves of one factor add to the mean square of an entry, and by how much coherence enlarges it.

    The latter is the mean over its pulls, so that those that cancel still do.
    """
    sizes = [move.size.value * (network.scale**2 if move.pull else 1.0) for move in moves]
    own = [(move, size) for move, size in zip(moves, sizes, strict=True) if not move.is_mixed]
    whole = math.fsum(size for _, size in own)
    larger = math.fsum(size * coherence(network, move) for move, size in own)
    return total_of(sizes), larger / whole if 0 < whole < math.inf else 1.0


def _rates(adapter: Adapter, group: Group, moved: set[str], squares: Mapping[str, float]) -> dict[str, float]:
    """Return 1 for each factor that moves first, and kappa times its RMS over the root of their number for the others.

    The RMS is that of the node, per step of the node. A factor that starts at 0 but does not move first gets 1 as well:
    its size is not known.
    """
    network = group.network
    trained = [name for name, factor in adapter.spec.arrays.items() if factor.trainable]
    sizes = {}
    for name in trained:
        factor, made_for = network.factors[name], adapter.sizes_made_for(group, name)
        if name in moved or factor.is_zero:
            continue
        square = squares.get(name, 0.0) if factor.init.is_read else mean_square(factor, network, made_for).value
        step = node_step(factor, network, made_for).value
        if square and step:
            sizes[name] = math.sqrt(square / step)
    return {name: KAPPA * sizes[name] / math.sqrt(len(sizes)) if name in sizes else 1.0 for name in trained}


def coherence(network: Network, move: Move) -> float:
    """Return by how much the square of a step is larger since its signs follow the other factors of its term.

    Without the factor its term falls in parts. One that it joins by r numbers to n entries of the weight or of sites
    which it does not have itself adds 1 + (2 / pi) (r - 1) / n. The gradient of a Cayley transform is antisymmetric, so
    that the two signs of a pair of entries are opposite, and their difference is 2. A reflection or a rotation has too
    few numbers to follow the entries of its node.
    """
    if move.pull is None or network.factors[move.factor].map in ("householder", "rotation"):
        return 1.0
    outer = {*network.over, *network.out_modes, *network.in_modes}
    own = {*network.nodes[move.pull.node].modes}
    parts: list[set[str]] = []
    for name in move.pull.others:
        modes = {*network.nodes[name].modes}
        near = [part for part in parts if (part & modes) - outer]
        parts = [part for part in parts if part not in near] + [modes.union(*near)]
    found = 2.0 if network.factors[move.factor].map == "cayley" else 1.0
    for modes in parts:
        joined = network.volume((modes & own) - outer)
        entries = network.volume((modes & outer) - own)
        found *= 1 + (2 / math.pi) * (joined - 1) / entries
    return found


def _formula(moves: tuple[Move, ...]) -> str:
    """Return the update in sizes and the scale, such as |scale| sqrt(r / (3 in))."""
    sizes = [str(move.size) for move in moves if move.pull]
    lengths = [str(move.size) for move in moves if move.pull is None]
    scaled = f"|scale| sqrt({' + '.join(sizes)})" if sizes else ""
    if not lengths:
        return scaled or "0"
    squared = [f"scale^2 ({' + '.join(sizes)})"] if sizes else []
    return f"sqrt({' + '.join([*squared, *lengths])})"
