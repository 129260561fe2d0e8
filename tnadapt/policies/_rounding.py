"""The DMRG-like schedule of MetaTT: at which steps all bonds are rounded, and to which rank."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from tnadapt._errors import SiteError
from tnadapt._hosts import as_integers
from tnadapt._signature import answers_when_made, mistake, told
from tnadapt.policies._checks import expect_count, expect_state

__all__ = ["Rounding"]

WHERE = "Rounding"


@answers_when_made(SiteError)
class Rounding:
    """Ranks that fall at given steps, by a sweep of all bonds (arXiv:2506.09105)."""

    def __init__(self, ranks: Mapping[int, int]) -> None:
        """Make a schedule from step -> the largest rank after it, as in {100: 8, 200: 4}.

        Raises:
            SiteError: a step or a rank is no positive integer, there is none, or ranks rise.
        """
        plain = as_integers(ranks)
        if not isinstance(plain, Mapping) or not plain:
            raise mistake(SiteError, WHERE, "a rank for at least one step", told(ranks), "Write Rounding({100: 8}).")
        pairs = sorted((expect_count(t, WHERE, "step", 1), expect_count(r, WHERE, "rank", 1)) for t, r in plain.items())
        self.ranks = dict(pairs)
        for (first, high), (later, low) in pairwise(pairs):
            if low > high:
                raise SiteError(f"{WHERE}: expected ranks that fall, got {high} at step {first} and {low} at {later}.")
        self.time = 0

    def step(self) -> int | None:
        """Take one step, and return the rank to round to; None if nothing is rounded."""
        self.time += 1
        return self.ranks.get(self.time)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data, which JSON can hold exactly."""
        return {"asked": self._asked, "time": self.time}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Raises SiteError for one of other arguments, or what is none."""
        self.time = expect_count(expect_state(state, WHERE, {"asked", "time"}, self._asked)["time"], WHERE, "time")

    @property
    def _asked(self) -> dict[str, Any]:
        return {"ranks": {str(step): rank for step, rank in self.ranks.items()}}
