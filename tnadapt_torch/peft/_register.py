"""Make this method known to PEFT: the entries in its tables, and a check before it writes a pickle."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from peft import PeftModel
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from tnadapt import FormatError
from tnadapt_torch.peft._config import PREFIX, PeftType, TnConfig
from tnadapt_torch.peft._tuner import TnModel

__all__: list[str] = []

P = ParamSpec("P")


def refuse_pickles(save: Callable[P, None]) -> Callable[P, None]:
    """Let `PeftModel.save_pretrained` raise FormatError, before it writes anything, for a pickle of our factors.

    PEFT asks no method before it writes, and its loader reads pickles, which can run code. Other methods are not
    affected.
    """
    signature = inspect.signature(save)

    @wraps(save)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        given = signature.bind(*args, **kwargs).arguments
        if not given.get("safe_serialization", True):
            ours = [name for name, config in given["self"].peft_config.items() if isinstance(config, TnConfig)]
            if ours:
                raise FormatError(
                    f"save_pretrained: expected safe_serialization=True for adapter {ours[0]!r}, got False.\n"
                    "A pickle can run code when it is read. Leave the argument out. Nothing was written."
                )
        save(*args, **kwargs)

    return checked


# `peft.utils.register_peft_method` accepts only the members of PEFT's own enum. All it does is fill these three tables,
# which PEFT reads by name.
PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.TNADAPT] = TnConfig
PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.TNADAPT] = PREFIX
PEFT_TYPE_TO_TUNER_MAPPING[PeftType.TNADAPT] = TnModel
PeftModel.save_pretrained = refuse_pickles(PeftModel.save_pretrained)
