"""Checks of the arguments and the saved states that the schedules have in common."""

from collections.abc import Mapping
from numbers import Real

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
