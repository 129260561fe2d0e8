"""The scale: the factor in front of an update, as a rule without sizes."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from tnadapt._errors import SpecError
from tnadapt._hosts import as_number
from tnadapt._language.initializer import HUGE
from tnadapt._signature import answers, mistake, told

__all__ = ["LORA_STEP", "Scale", "over_rank", "over_sqrt_rank", "raw", "unit"]

LORA_STEP = math.sqrt(8 / 3)
"""The output of the first step of LoRA of rank 8 with alpha 8, whatever the width: the argument of `unit`."""

Rule = Literal["over_rank", "over_sqrt_rank", "raw", "unit"]


@dataclass(frozen=True)
class Scale:
    """A rule for the number that multiplies the update: alpha / rank, alpha / sqrt(rank), alpha itself, or `unit`."""

    rule: Rule
    alpha: float
    bond: str = ""

    def __post_init__(self) -> None:
        """Take a number of numpy as the Python number, which a file can hold."""
        object.__setattr__(self, "alpha", as_number(self.alpha))

    def faults(self) -> list[str]:
        """List the faults of this rule, apart from the spec that uses it."""
        rules = get_args(Rule)
        found = [] if self.rule in rules else [f"scale: expected one of {', '.join(rules)}, got {self.rule!r}"]
        quoted = "; write the number without quotes" if isinstance(self.alpha, str) else ""
        is_number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not is_number or not -HUGE <= self.alpha <= HUGE:
            found.append(f"scale: expected a finite number as alpha, got {self.alpha!r}{quoted}")
        elif self.alpha == 0:
            found.append(f"scale: expected an alpha that is not 0, got {self.alpha!r}: nothing would ever train")
        return found

    @property
    def over_bond(self) -> bool:
        """Whether the rule divides by the size of a bond."""
        return self.rule in ("over_rank", "over_sqrt_rank")

    @property
    def is_unit(self) -> bool:
        """Whether the number follows from the first step, so that a file holds it beside the rule."""
        return self.rule == "unit"

    def at(self, rank: int, gain: float = 1.0) -> float:
        """Return the scale of a network as a Python float.

        `rank` is the size of the bond `bond`; `gain` how far a first step at a scale of 1 goes, which "unit" needs.
        """
        divisors = {"over_rank": float(rank), "over_sqrt_rank": math.sqrt(rank), "raw": 1.0, "unit": gain}
        return float(self.alpha) / divisors[self.rule]

    def __str__(self) -> str:
        """Return a text such as 16 / sqrt(r)."""
        divisor = {"over_rank": f" / {self.bond}", "over_sqrt_rank": f" / sqrt({self.bond})", "unit": " x unit"}
        alpha = self.alpha if isinstance(self.alpha, str | None) else f"{self.alpha:g}"  # faults() refuses the former
        return f"{alpha}{divisor.get(self.rule, '')}"


@answers(SpecError)
def over_rank(bond: str, *, alpha: float = 1.0) -> Scale:
    """Scale by alpha / size of `bond`, as LoRA does."""
    return Scale("over_rank", alpha, _bond(bond, "over_rank"))


@answers(SpecError)
def over_sqrt_rank(bond: str, *, alpha: float = 1.0) -> Scale:
    """Scale by alpha / sqrt(size of `bond`), as rsLoRA does (arXiv:2312.03732)."""
    return Scale("over_sqrt_rank", alpha, _bond(bond, "over_sqrt_rank"))


@answers(SpecError)
def raw(alpha: float = 1.0) -> Scale:
    """Scale by alpha itself."""
    return Scale("raw", alpha)


@answers(SpecError)
def unit(alpha: float = 1.0) -> Scale:
    """Scale such that the first step of Adam at a learning rate lr changes what a weight gives by lr * alpha.

    That is the RMS of dW x after the step, for an x of RMS 1 that the step has not seen. It follows from the spec and
    the sizes, and is the same for every family. LoRA of rank 8 with alpha 8 has sqrt(8/3) = 1.63, with alpha 16 3.27:
    `unit(LORA_STEP)` is for any family as large as the former.
    `alpha=` at bind or attach replaces this alpha as it replaces that of any rule: with PEFT's usual 16, steps are 16.
    """
    return Scale("unit", alpha)


def _bond(given: object, where: str) -> str:
    """Return the name of a bond. Raises SpecError for anything else."""
    if isinstance(given, str):
        return given
    raise mistake(SpecError, where, "the name of a bond", told(given), f'Write {where}("r"), and pass alpha by name.')
