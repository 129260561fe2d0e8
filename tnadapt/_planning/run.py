"""Run a plan: one loop over its steps, for every array library."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tnadapt._planning.cost import Convolution
from tnadapt._planning.equation import equation_of
from tnadapt._planning.plan import Plan

__all__ = ["Backend", "Labeled", "NumpyBackend", "run"]

Modes = tuple[str, ...]
Value = TypeVar("Value")


class Backend(Protocol[Value]):
    """What a plan asks of an array library.

    A value carries the modes of its axes, in an order that the backend chooses.
    """

    def contract(self, left: Value, right: Value, kept: Modes, wanted: Modes) -> Value:
        """Multiply two values and sum over every mode that is not in `kept`.

        `wanted` is the order that the answer must have in the last step, empty in all others.
        """
        ...

    def convolve(self, left: Value, right: Value, kept: Modes, how: Convolution) -> Value:
        """Convolve two values circularly along one mode of each, multiply, and sum over every mode not in `kept`.

        The values at i along `how.left` and at j along `how.right`, times `how.amount`, are added up at i + j along
        `how.made`, modulo their size; at i - j if the right side is conjugated, at j - i if the left one is.
        """
        ...

    def ordered(self, value: Value, modes: Modes) -> Value:
        """Return the value with its axes in this order."""
        ...

    def add(self, values: Sequence[tuple[int, Value]]) -> Value:
        """Return the sum of values with the same axes, each times its sign."""
        ...


def run(plan: Plan, operands: Sequence[Value], backend: Backend[Value]) -> Value:
    """Contract the operands of a plan, in its order. Nothing is checked here.

    Args:
        plan: the order; operand n has the modes `plan.inputs[n]`.
        operands: one value for each of `plan.operands`.
        backend: the array library.

    Returns:
        The answer, with axes `plan.answer`. The scale of the network is not in it.
    """
    values, first = list(operands), len(plan.operands)
    ends = {number for _, number in plan.results}
    parts = []
    for sign, result in plan.results:
        for step in plan.steps[len(values) - first : max(result + 1 - first, 0)]:
            left, right = values[step.left], values[step.right]
            if step.convolution:
                values.append(backend.convolve(left, right, step.modes, step.convolution))
            else:
                wanted = plan.answer if len(values) in ends else ()
                values.append(backend.contract(left, right, step.modes, wanted))
        parts.append((sign, backend.ordered(values[result], plan.answer)))
    return parts[0][1] if len(parts) == 1 and parts[0][0] > 0 else backend.add(parts)


@dataclass(frozen=True)
class Labeled:
    """An array and the mode of each of its axes."""

    array: npt.NDArray[Any]
    modes: Modes


class NumpyBackend:
    """Every step as one einsum of two operands, or of their spectra."""

    def contract(self, left: Labeled, right: Labeled, kept: Modes, wanted: Modes) -> Labeled:
        """Multiply and sum, as `Backend` says."""
        modes = wanted or kept
        return Labeled(np.einsum(equation_of((left.modes, right.modes), modes), left.array, right.array), modes)

    def convolve(self, left: Labeled, right: Labeled, kept: Modes, how: Convolution) -> Labeled:
        """Multiply the spectra, as `Backend` says."""
        sides = {"left": (left, how.left), "right": (right, how.right)}
        spectra = []
        for name, (side, mode) in sides.items():
            spectrum = np.fft.rfft(side.array, axis=side.modes.index(mode))
            modes = tuple(how.made if one == mode else one for one in side.modes)
            spectra.append(Labeled(spectrum.conj() if how.conjugated == name else spectrum, modes))
        made = self.contract(spectra[0], spectra[1], kept, ())
        signal = np.fft.irfft(made.array, how.size, axis=made.modes.index(how.made))
        return Labeled(how.amount * signal, made.modes)

    def ordered(self, value: Labeled, modes: Modes) -> Labeled:
        """Transpose, as `Backend` says."""
        if value.modes == modes:
            return value
        return Labeled(np.transpose(value.array, [value.modes.index(mode) for mode in modes]), modes)

    def add(self, values: Sequence[tuple[int, Labeled]]) -> Labeled:
        """Add and subtract, as `Backend` says."""
        (sign, first), *others = values
        total = sign * first.array
        for sign, other in others:
            total += sign * other.array
        return Labeled(total, first.modes)
