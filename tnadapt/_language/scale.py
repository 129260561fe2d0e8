"""The scale: the factor in front of an update, as a rule without sizes."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from tnadapt._errors import SpecError
from tnadapt._language.initializer import HUGE
from tnadapt._signature import answers, mistake, told

__all__ = ["Scale", "over_rank", "over_sqrt_rank", "raw"]

Rule = Literal["over_rank", "over_sqrt_rank", "raw"]


@dataclass(frozen=True)
class Scale:
    """A rule for the number that multiplies the update: alpha / rank, alpha / sqrt(rank), or alpha itself."""

    rule: Rule
    alpha: float
    bond: str = ""

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

    def at(self, rank: int) -> float:
        """Return the scale of a network whose bond `bond` has size `rank`, as a Python float."""
        return float(self.alpha) / {"over_rank": rank, "over_sqrt_rank": math.sqrt(rank), "raw": 1.0}[self.rule]

    def __str__(self) -> str:
        """Return a text such as 16 / sqrt(r)."""
        divisor = {"over_rank": f" / {self.bond}", "over_sqrt_rank": f" / sqrt({self.bond})"}
        return f"{self.alpha:g}{divisor.get(self.rule, '')}"


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


def _bond(given: object, where: str) -> str:
    """Return the name of a bond. Raises SpecError for anything else."""
    if isinstance(given, str):
        return given
    raise mistake(SpecError, where, "the name of a bond", told(given), f'Write {where}("r"), and pass alpha by name.')
