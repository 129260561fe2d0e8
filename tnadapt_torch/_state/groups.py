"""Parameter groups for a torch optimizer, one per factor."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from tnadapt import Adapter, SiteError

__all__: list[str] = []

SAVED = "modules_to_save"


def parameter_groups(
    adapter: Adapter,
    params: Mapping[str, Tensor],
    saved: Mapping[str, Tensor],
    lr: float | Mapping[str, float],
    ratio: float,
) -> list[dict[str, Any]]:
    """Build the groups of `AdapterState.parameter_groups`; `saved` are the tensors of the modules trained in full."""
    factors = adapter.spec.arrays
    members: dict[str, list[Tensor]] = {
        name: [params[adapter.slot_name(group, name)] for group in adapter.groups]
        for name, factor in factors.items()
        if factor.trainable
    }
    zero = [name for name in members if factors[name].init.is_zero]
    whole = list(dict.fromkeys(value for value in saved.values() if value.requires_grad))  # a tied one has two names
    rates = _rates([*members, SAVED] if whole else list(members), zero, lr, ratio)
    groups = members | ({SAVED: whole} if whole else {})
    return [{"name": name, "params": tensors, "lr": rates[name]} for name, tensors in groups.items()]


def _rates(
    names: Collection[str], zero: Collection[str], lr: float | Mapping[str, float], ratio: float
) -> dict[str, float]:
    _check_positive("ratio", ratio)
    if isinstance(lr, Mapping):
        if odd := sorted(lr.keys() ^ set(names)):
            raise SiteError(
                f"lr: expected one rate for each trained factor ({', '.join(names)}), "
                f"got rates where {', '.join(odd)} {'is' if len(odd) == 1 else 'are'} missing or unknown."
            )
        if ratio != 1.0:
            raise SiteError(
                f"ratio: expected no ratio beside a rate for every factor, got {ratio!r}.\nLeave ratio out."
            )
        for name, rate in lr.items():
            _check_positive(f"lr of {name!r}", rate)
        return dict(lr)
    _check_positive("lr", lr)
    if ratio != 1.0 and not zero:
        raise SiteError(
            f"ratio: expected a factor that starts at zero, got {', '.join(names)}, none of which does.\n"
            "Give lr a rate for each of them."
        )
    return {name: lr * ratio if name in zero else lr for name in names}


def _check_positive(what: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise SiteError(f"{what}: expected a positive number, got {value!r}.")
