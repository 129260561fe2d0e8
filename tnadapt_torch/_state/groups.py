"""Parameter groups for a torch optimizer, one per factor, or several where the rates of a factor differ."""

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from tnadapt import Adapter, SiteError
from tnadapt.binding import Balanced, as_number, balanced_rates, mistake, told
from tnadapt_torch._sharded import reshard
from tnadapt_torch._state.step import start_values_of

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []

SAVED = "modules_to_save"


class Optimized(nn.Module):
    """The part of an adapter's state that an optimizer takes."""

    def parameter_groups(
        self,
        *,
        lr: float | Mapping[str, float],
        ratio: float = 1.0,
        balance: bool = False,
        weight_decay: float | None = None,
    ) -> list[dict[str, Any]]:
        """Make parameter groups for a torch optimizer, one per trainable factor, since the factors differ in scale.

        Args:
            lr: the learning rate, or a rate for each trainable factor by its name in the spec.
            ratio: factors that start at zero get lr * ratio, the others lr. For LoRA this is the lambda of LoRA+ (Hayou
                et al. 2024, arXiv:2402.12354): B starts at zero and learns faster than A by this ratio.
            balance: multiply lr by the `rates` of `step_size`. Factors that move first get lr, each other one a rate in
                proportion to the size of its starting values, so that one lr suits all families; see
                docs/explanation/learning_rate.md.
            weight_decay: what AdamW would have as weight_decay if all rates were lr. Each group gets weight_decay * lr
                / rate, so that all factors shrink alike. Without it the groups name none, the optimizer's own one
                applies to all, and a factor shrinks in proportion to its rate.

        Returns:
            A dict of name, params and lr for each factor, and of weight_decay if it is given. If the balanced rates of
            a factor differ between groups of the adapter, there is one dict per rate, named by its first entry of
            `params()`. If there are modules_to_save, they form one more group of that name, at lr.

        Raises:
            SiteError: a rate is not a positive number, a name is unknown or missing, the ratio would have no effect,
                or arguments are given of which each sets the rates; or a rate or a decay that follows from them is 0 or
                infinite.
        """
        state = cast("AdapterState", self)
        lr = {name: _number(rate) for name, rate in lr.items()} if isinstance(lr, Mapping) else _number(lr)
        ratio, weight_decay = _number(ratio), _number(weight_decay)
        reshard([state, *state.host])
        _check_words(lr, ratio, balance, weight_decay)
        saved = [value for value in state.saved.values().values() if value.requires_grad]
        whole = list(dict.fromkeys(saved))  # a tied one has two names
        parts = balanced_rates(state.adapter, start_values_of(state)) if balance else _by_factor(state.adapter)
        factors = state.spec.arrays
        names = dict.fromkeys(part.factor for part in parts.values())
        zero = [name for name in names if factors[name].init.is_zero]
        rates = _rates([*names, SAVED] if whole else [*names], zero, lr, ratio)
        params = state.params()
        groups: list[dict[str, Any]] = [
            {"name": label, "params": [params[name] for name in part.names], "lr": rates[part.factor] * part.rate}
            for label, part in parts.items()
        ]
        groups += [{"name": SAVED, "params": whole, "lr": rates[SAVED]}] if whole else []
        for group in groups:
            if not 0 < group["lr"] < math.inf:
                raise SiteError(
                    f"lr: expected a rate at which that of every factor is a positive number, got {lr!r}, at which "
                    f"{group['name']} has the rate: {group['lr']}."
                )
            if weight_decay is not None:
                group["weight_decay"] = _decay(weight_decay, cast("float", lr) / group["lr"], group["name"])
        return groups


def _number(value: Any) -> Any:
    """Return a number of numpy as the Python number; whether it is one at all is checked later."""
    return as_number(value)


def _decay(weight_decay: float, times: float, name: str) -> float:
    """Return the decay of a group. Raises SiteError if it is infinite."""
    found = weight_decay * times
    if not found < math.inf:
        raise SiteError(
            f"weight_decay: expected one at which that of every factor is finite, got {weight_decay!r}, at which "
            f"{name} has the decay: {found}."
        )
    return found


def _by_factor(adapter: Adapter) -> dict[str, Balanced]:
    """Return the entries of params of each trained factor, at the learning rate itself."""
    names = {name: factor for name, factor in adapter.spec.arrays.items() if factor.trainable}
    slots = {name: dict.fromkeys(adapter.slot_name(group, name) for group in adapter.groups) for name in names}
    return {name: Balanced(name, 1.0, tuple(slots[name])) for name in names}


def _check_words(lr: float | Mapping[str, float], ratio: float, balance: object, weight_decay: object) -> None:
    """Raise SiteError for values of the wrong type, and for two that both say which factor gets which rate."""
    if not isinstance(balance, bool):
        raise mistake(SiteError, "balance", "True or False", told(balance), "Write balance=True.")
    if balance and isinstance(lr, Mapping):
        raise SiteError("balance: expected one lr, got a rate for every factor.\nPass a number as lr, or no balance.")
    if balance and ratio != 1.0:
        raise SiteError(
            f"balance: expected no ratio beside it, since both set the rates of factors, got {ratio!r}.\n"
            "Leave out one of them. (For LoRA, balance is a ratio that depends on the width.)"
        )
    if weight_decay is None:
        return
    is_number = isinstance(weight_decay, int | float) and not isinstance(weight_decay, bool)
    if not is_number or not 0 <= cast("float", weight_decay) < math.inf:
        raise SiteError(f"weight_decay: expected a number of at least 0, got {weight_decay!r}.")
    if isinstance(lr, Mapping):
        raise SiteError(
            "weight_decay: expected one lr, to which it refers, got a rate for every factor.\n"
            "Leave weight_decay out, and set it in each group."
        )


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
