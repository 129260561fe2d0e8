"""The order in which a network is contracted: pairwise steps, numbered as they come, made once for each network.

The order here is fixed and obvious: start at x (or at the first factor), and take in, one by one, the connected factor
that leaves the smallest result.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from tnadapt._errors import PlanError
from tnadapt._network import Network

__all__ = ["Plan", "Step", "plan"]

TOKEN = "(token)"  # brackets: no mode of a spec can have this name
X = "(x)"

Modes = tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One pairwise contraction: the numbers of its two operands, and the modes of its result in order."""

    left: int
    right: int
    modes: Modes


@dataclass(frozen=True)
class Plan:
    """Pairwise steps that answer `ask` (apply: x to what the update adds; delta: the dense update) at one site.

    Operand n is `operands[n]` with modes `inputs[n]`; step n makes number len(operands) + n. Site modes are gone: a
    site was chosen. The scale is not in it.
    """

    network: Network
    ask: str
    operands: tuple[str, ...]
    inputs: tuple[Modes, ...]
    steps: tuple[Step, ...]
    answer: Modes

    def modes(self, number: int) -> Modes:
        """Modes of an operand or of a step's result, in order."""
        known = len(self.inputs)
        return self.inputs[number] if number < known else self.steps[number - known].modes

    def flops(self, tokens: int = 1) -> int:
        """Multiplications and additions of all steps, counted as opt_einsum does; for apply at that many tokens."""
        return sum(self.step_flops(step, tokens) for step in self.steps)

    def step_flops(self, step: Step, tokens: int = 1) -> int:
        """Flops of one step: the product of all its modes, twice where something is summed."""
        modes = {*self.modes(step.left), *self.modes(step.right)}
        volume = math.prod(tokens if mode == TOKEN else self.network.sizes[mode] for mode in modes)
        return volume * (1 + (set(step.modes) != modes))

    def __str__(self) -> str:
        """One line a step: what it reads, its einsum in words, its flops for one token."""
        lines = [
            f"{self.ask}: {len(self.steps)} steps, {self.flops():,} flops" + (" a token" if self.ask == "apply" else "")
        ]
        for number, step in enumerate(self.steps, len(self.operands)):
            left, right = (" ".join(self.modes(side)) for side in (step.left, step.right))
            names = [
                self.operands[side] if side < len(self.operands) else f"%{side}" for side in (step.left, step.right)
            ]
            equation = f"{left}, {right} -> {' '.join(step.modes)}"
            lines.append(f"  %{number} = {names[0]}, {names[1]}  [{equation}]  {self.step_flops(step):,} flops")
        return "\n".join(lines)


@lru_cache(maxsize=4096)
def plan(network: Network, ask: str = "apply") -> Plan:
    """The steps that answer `ask` for one site of a network. Raises PlanError for an ask that is no apply or delta."""
    if ask not in ("apply", "delta"):
        raise PlanError(f"plan: ask must be 'apply' or 'delta', got {ask!r}.")
    factors = {name: network.local_modes(name) for name in network.factors}
    through = {X: (TOKEN, *network.in_modes)} if ask == "apply" else {}
    operands = through | factors
    answer = (TOKEN, *network.out_modes) if ask == "apply" else (*network.out_modes, *network.in_modes)
    inputs = tuple(operands.values())
    return Plan(network, ask, tuple(operands), inputs, _absorb(network, inputs, answer), answer)


def _absorb(network: Network, inputs: tuple[Modes, ...], answer: Modes) -> tuple[Step, ...]:
    steps: list[Step] = []
    current, modes, waiting = 0, inputs[0], list(range(1, len(inputs)))
    while waiting:
        joined = [number for number in waiting if set(inputs[number]) & set(modes) or not inputs[number]] or waiting
        results = {number: _result(modes, inputs, number, waiting, answer) for number in joined}
        chosen = min(joined, key=lambda number: math.prod(network.sizes.get(mode, 1) for mode in results[number]))
        waiting.remove(chosen)
        modes = results[chosen]
        steps.append(Step(current, chosen, modes))
        current = len(inputs) + len(steps) - 1
    return tuple(steps)


def _result(modes: Modes, inputs: tuple[Modes, ...], number: int, waiting: list[int], answer: Modes) -> Modes:
    """What is left of two operands: the modes that the answer or a later operand needs, the left's first."""
    needed = {*answer, *(mode for other in waiting if other != number for mode in inputs[other])}
    return tuple(mode for mode in dict.fromkeys((*modes, *inputs[number])) if mode in needed)
