"""Checks of the arguments and the saved states that the schedules have in common."""

from collections.abc import Mapping
from numbers import Real

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError
from tnadapt._hosts import as_integer
from tnadapt._signature import mistake, told

__all__: list[str] = []


def expect_count(value: object, where: str, word: str, least: int = 0) -> int:
    """Return an integer of at least `least`. Raises SiteError for anything else."""
    found = as_integer(value)
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        todo = f"Write {word}={max(least, 1)}."
        raise mistake(SiteError, where, f"an integer of at least {least} as {word}", told(value), todo)
    return found


def expect_share(value: object, where: str, word: str) -> float:
    """Return a number from 0 to 1, without 1. Raises SiteError for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise mistake(
            SiteError, where, f"a number from 0 to 1, without 1, as {word}", told(value), f"Write {word}=0.85."
        )
    return float(value)


def expect_betas(betas: object, where: str) -> tuple[float, float]:
    """Return beta1 and beta2, both from 0 to 1, without 1. Raises SiteError for anything else."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:  # noqa: PLR2004  (beta1 and beta2)
        raise mistake(SiteError, where, "two numbers as betas", told(betas), "Write betas=(0.85, 0.85).")
    return expect_share(betas[0], where, "beta1"), expect_share(betas[1], where, "beta2")


def expect_slices(importances: object, where: str) -> dict[str, npt.NDArray[np.float64]]:
    """Return a finite number for each slice of each bond, sorted by name. Raises SiteError for anything else."""
    if not isinstance(importances, Mapping) or not importances:
        todo = "Pass what importance(adapter, params, gradients) returned."
        raise mistake(SiteError, where, "the importances of at least one bond", told(importances), todo)
    found = {name: np.asarray(value, dtype=np.float64) for name, value in sorted(importances.items())}
    for name, value in found.items():
        if value.ndim != 1 or not len(value) or not np.isfinite(value).all():
            raise SiteError(f"{where}: expected a finite number for each slice of {name!r}, got {told(value)}.")
    return found


def expect_state(state: object, where: str, names: set[str], asked: Mapping[str, object]) -> Mapping[str, object]:
    """Return a saved state. Raises SiteError unless it has these names, and was made with the same arguments."""
    if not isinstance(state, Mapping) or {*state} != names:
        todo = f"Pass what state_dict() of a {where} returned."
        raise mistake(SiteError, where, f"a state of {', '.join(sorted(names))}", told(state), todo)
    if state["asked"] != asked:
        raise SiteError(
            f"{where}: expected the state of a schedule with the arguments {asked}, got {state['asked']}.\n"
            "Make the schedule with the arguments that it had."
        )
    return state
