"""AdaLoRA's budget on any spec: which slices of all bonds stay while their number falls."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError
from tnadapt._signature import answers_when_made
from tnadapt.policies._checks import expect_betas, expect_count, expect_slices, expect_state

__all__ = ["Budget"]

Array = npt.NDArray[np.float64]
Keep = dict[str, tuple[int, ...]]
WHERE = "Budget"


@answers_when_made(SiteError)
class Budget:
    """A falling number of slices, given to the bonds whose slices the loss depends on most (openreview:lq62uWRJjiY).

    At step t there are at most b(t) slices: all of them up to `warmup`, then
    target + (initial - target) (1 - (t - warmup) / (steps - final - warmup))^3, and `target` in the `final` steps.
    The score of a slice is M U, where I is the absolute value of its importance, M the running mean of I with beta1,
    and U that of |I - M| with beta2. The importance does not depend on the basis of the factors, as AdaLoRA's does.
    Each bond keeps at least one slice. It is a pure object of numbers: equal importances give equal decisions.
    """

    def __init__(
        self,
        *,
        target: int,
        steps: int,
        warmup: int = 0,
        final: int = 0,
        every: int = 1,
        betas: tuple[float, float] = (0.85, 0.85),
    ) -> None:
        """Make a schedule.

        Args:
            target: how many slices all bonds together have in the end.
            steps: how many steps the training has.
            warmup: how many first steps change nothing; they collect the means.
            final: how many last steps change nothing.
            every: how many steps lie between two decisions.
            betas: beta1 of the running mean of the importance, and beta2 of its deviation.

        Raises:
            SiteError: a number is out of range, or no step is left between warm-up and final phase.
        """
        self.target, self.steps = (
            expect_count(value, WHERE, word, 1) for value, word in ((target, "target"), (steps, "steps"))
        )
        self.warmup, self.final = (
            expect_count(value, WHERE, word) for value, word in ((warmup, "warmup"), (final, "final"))
        )
        self.every = expect_count(every, WHERE, "every", 1)
        self.betas = expect_betas(betas, WHERE)
        if self.warmup + self.final >= self.steps:
            raise SiteError(
                f"{WHERE}: expected a step between warmup and final, got {self.warmup} + {self.final} of {self.steps}."
            )
        self.time = 0
        self.initial: int | None = None  # of the first importances
        self.mean: dict[str, Array] = {}
        self.deviation: dict[str, Array] = {}

    def at(self, time: int) -> int:
        """Return b(time). Raises SiteError before the first step, which tells the number of slices."""
        if self.initial is None:
            raise SiteError(f"{WHERE}: expected a schedule that has begun, got a new one.\nCall step first.")
        end = self.steps - self.final
        if time <= self.warmup:
            return self.initial
        if time >= end:
            return self.target
        left = 1.0 - (time - self.warmup) / (end - self.warmup)
        return int(self.target + (self.initial - self.target) * left**3)

    def step(self, importances: Mapping[str, npt.ArrayLike]) -> Keep:
        """Take one step, and return the slices that stay, by the name of the bond: only those of bonds that lose some.

        The next importances must be those of the slices that stayed, in this order.

        Args:
            importances: what `importance` returned, or a part of it.

        Raises:
            SiteError: there are no bonds, or others than before, a number is not finite, or the target is less than one
                slice for each bond or more than all. Nothing is changed then.
        """
        found = self._expect(importances)
        self.initial = sum(map(len, found.values())) if self.initial is None else self.initial
        self.time += 1
        beta1, beta2 = self.betas
        for name, sensitivity in found.items():
            zero = np.zeros(len(sensitivity))
            self.mean[name] = beta1 * self.mean.get(name, zero) + (1 - beta1) * sensitivity
            distance = np.abs(sensitivity - self.mean[name])
            self.deviation[name] = beta2 * self.deviation.get(name, zero) + (1 - beta2) * distance
        if self.time <= self.warmup or (self.time % self.every and self.time < self.steps - self.final):
            return {}
        keep = self._choose(self.at(self.time))
        for kept in (self.mean, self.deviation):
            kept.update({name: kept[name][list(places)] for name, places in keep.items()})
        return keep

    def _choose(self, budget: int) -> Keep:
        """Return the slices of the largest scores, at least one of each bond. Equal scores: by bond, the first ones."""
        scores = {name: self.mean[name] * self.deviation[name] for name in sorted(self.mean)}
        best = {name: int(np.argmax(score)) for name, score in scores.items()}
        others = [
            (-float(score), name, place)
            for name, own in scores.items()
            for place, score in enumerate(own)
            if place != best[name]
        ]
        chosen = {name: {place} for name, place in best.items()}
        for _, name, place in sorted(others)[: max(budget - len(best), 0)]:
            chosen[name].add(place)
        return {name: tuple(sorted(places)) for name, places in chosen.items() if len(places) < len(scores[name])}

    def _expect(self, importances: object) -> dict[str, Array]:
        found = {name: np.abs(value) for name, value in expect_slices(importances, WHERE).items()}
        sizes, known = ({name: len(value) for name, value in one.items()} for one in (found, self.mean))
        if self.mean and sizes != known:
            odd = next(name for name in sorted({*sizes, *known}) if sizes.get(name) != known.get(name))
            raise SiteError(
                f"{WHERE}: expected {known.get(odd, 0)} slices of {odd!r}, as before, got {sizes.get(odd, 0)}.\n"
                "Cut what step returned, and nothing else, or make a new schedule."
            )
        total = sum(sizes.values())
        if not len(sizes) <= self.target <= total:
            raise SiteError(
                f"{WHERE}: expected a target from {len(sizes)}, one slice for each bond, to {total}, the slices that "
                f"there are, got {self.target}."
            )
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data, which JSON can hold exactly."""
        means = {word: {name: one.tolist() for name, one in getattr(self, word).items()} for word in MEANS}
        return {"asked": self._asked, "time": self.time, "initial": self.initial, **means}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Raises SiteError for one of other arguments, or what is none."""
        known = expect_state(state, WHERE, {"asked", "time", "initial", *MEANS}, self._asked)
        means: Any = [{n: np.array(v, dtype=np.float64) for n, v in dict(known[word]).items()} for word in MEANS]  # type: ignore[call-overload]
        self.time, self.initial = state["time"], state["initial"]
        self.mean, self.deviation = means

    @property
    def _asked(self) -> dict[str, Any]:
        return {word: getattr(self, word) for word in ("target", "steps", "warmup", "final", "every")} | {
            "betas": list(self.betas)
        }


MEANS = ("mean", "deviation")
