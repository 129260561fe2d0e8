"""Groups of parameters for an optimizer, by factor."""

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
    """As `AdapterState.parameter_groups` says; `saved` are the trained tensors of whole modules."""
    factors = adapter.spec.factors
    members: dict[str, list[Tensor]] = {
        name: [params[adapter.slot_name(group, name)] for group in adapter.groups]
        for name, factor in factors.items()
        if factor.trainable
    }
    zero = [name for name in members if factors[name].init.is_zero]
    whole = [value for value in saved.values() if value.requires_grad]
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
                f"lr: must name each trained factor once: {', '.join(names)}.\n"
                f"However, {', '.join(odd)} {'is' if len(odd) == 1 else 'are'} missing or unknown."
            )
        if ratio != 1.0:
            raise SiteError("ratio: lr gives every factor its own rate.\nHowever, there is a ratio, too; leave it out.")
        for name, rate in lr.items():
            _check_positive(f"lr of {name!r}", rate)
        return dict(lr)
    _check_positive("lr", lr)
    if ratio != 1.0 and not zero:
        raise SiteError(
            "ratio: is for the factors that start at zero.\n"
            f"However, none of {', '.join(names)} does; give lr a rate for each of them."
        )
    return {name: lr * ratio if name in zero else lr for name in names}


def _check_positive(what: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise SiteError(f"{what}: must be a positive number, got {value!r}.")
