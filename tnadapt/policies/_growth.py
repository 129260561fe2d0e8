"""TriAdaptLoRA's growth on any spec: which units of an adapter get larger bonds, and by how much."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from tnadapt._errors import SiteError
from tnadapt._signature import answers_when_made, mistake, told
from tnadapt.policies._checks import expect_count, expect_state

__all__ = ["Growth"]

Pace = Literal["linear", "exponential"]
WHERE = "Growth"


@answers_when_made(SiteError)
class Growth:
    """Ranks that grow where the factors grew most, up to a total (arXiv:2501.08008).

    A unit is what has ranks of its own, as a group of sites. At the k-th growth the score of a unit is n / k, where n
    is the norm of its factor, less what this was at the growth before. The units of the largest scores get `add` more:
    max(1, int(tau (target - now))) of them for "linear", max(1, int(exp(tau log(target - now)))) for "exponential",
    where tau is the part of the time after the warm-up that has passed. The last growth gives what is left, by score,
    and none goes beyond the target, which the authors' code does not ensure.
    """

    def __init__(
        self, *, target: int, steps: int, warmup: int = 0, every: int = 1, add: int = 1, pace: Pace = "linear"
    ) -> None:
        """Make a schedule.

        Args:
            target: the sum of the ranks of all units in the end.
            steps: the step of the last growth.
            warmup: how many first steps change nothing.
            every: how many steps lie between two growths.
            add: by how much a unit grows at once.
            pace: how the number of units that grow follows from the time.

        Raises:
            SiteError: a number is out of range, or no growth is left after the warm-up.
        """
        self.target, self.steps, self.every, self.add = (
            expect_count(value, WHERE, word, 1)
            for value, word in ((target, "target"), (steps, "steps"), (every, "every"), (add, "add"))
        )
        self.warmup = expect_count(warmup, WHERE, "warmup")
        if self.warmup >= self.steps:
            raise SiteError(f"{WHERE}: expected a step after warmup, got {self.warmup} of {self.steps}.")
        if pace not in get_args(Pace):
            todo = 'Write pace="linear".'
            raise mistake(SiteError, WHERE, "one of 'linear', 'exponential' as pace", told(pace), todo)
        self.pace = pace
        self.time, self.growths = 0, 0
        self.values: dict[str, float] = {}  # n / k of each unit at the last growth

    @property
    def is_due(self) -> bool:
        """Whether the next step decides on a growth, so that it needs norms."""
        time = self.time + 1
        return self.warmup < time <= self.steps and (time == self.steps or time % self.every == 0)

    def step(
        self, norms: Mapping[str, float], ranks: Mapping[str, int], limits: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """Take one step, and return by how much each unit grows: only those that do.

        Args:
            norms: the norm of each unit's factor; read only if `is_due`.
            ranks: the rank of each unit now.
            limits: the largest rank of a unit, where there is one.

        Raises:
            SiteError: the ranks are above the target already, a norm is missing or not finite, or the limits are below
                the target. Nothing is changed then.
        """
        if not ranks:
            raise SiteError(f"{WHERE}: expected the rank of at least one unit, got none.")
        now, most = sum(ranks.values()), limits or {}
        if now > self.target:
            raise SiteError(f"{WHERE}: expected ranks of at most {self.target}, the target, got {now}.")
        if all(name in most for name in ranks) and sum(most[name] for name in ranks) < self.target:
            room = sum(most[name] for name in ranks)
            raise SiteError(f"{WHERE}: expected a target of at most {room}, which the ranks can be, got {self.target}.")
        if not self.is_due:
            self.time += 1
            return {}
        if odd := [name for name in sorted(ranks) if not math.isfinite(norms.get(name, math.nan))]:
            raise SiteError(f"{WHERE}: expected a finite norm of {odd[0]!r}, got {told(norms.get(odd[0]))}.")
        self.time, self.growths = self.time + 1, self.growths + 1
        values = {name: float(norms[name]) / self.growths for name in sorted(ranks)}
        order = sorted(values, key=lambda name: (self.values.get(name, 0.0) - values[name], name))
        self.values = values
        return self._share(order, dict(ranks), most)

    def _share(self, order: list[str], ranks: dict[str, int], most: Mapping[str, int]) -> dict[str, int]:
        """Return the growth of each unit. The first ones of the order grow; at the end, all, again and again."""
        left, more = self.target - sum(ranks.values()), dict.fromkeys(order, 0)
        number = len(order) if self.time == self.steps else self._number(left)
        while left:
            able = [name for name in order if ranks[name] + more[name] < most.get(name, self.target)][:number]
            for name in able:
                by = min(self.add, left, most.get(name, self.target) - ranks[name] - more[name])
                more[name], left = more[name] + by, left - by
            if self.time < self.steps or not able:
                break
        return {name: by for name, by in more.items() if by}

    def _number(self, left: int) -> int:
        """Return how many units grow while this much is left."""
        if left < 1:
            return 0
        tau = (self.time - self.warmup) / (self.steps - self.warmup)
        return max(1, int(tau * left if self.pace == "linear" else math.exp(tau * math.log(left))))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data, which JSON can hold exactly."""
        return {"asked": self._asked, "time": self.time, "growths": self.growths, "values": dict(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Raises SiteError for one of other arguments, or what is none."""
        expect_state(state, WHERE, {"asked", "time", "growths", "values"}, self._asked)
        self.time, self.growths, self.values = state["time"], state["growths"], dict(state["values"])

    @property
    def _asked(self) -> dict[str, Any]:
        return {word: getattr(self, word) for word in ("target", "steps", "warmup", "every", "add", "pace")}
