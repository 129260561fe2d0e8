"""On which device each factor lives: that of the weights it updates, so that no call copies it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tnadapt import Adapter
from tnadapt_torch._host.weight import Weight

__all__: list[str] = []


def place_params(adapter: Adapter, weights: Mapping[str, Weight], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move each factor to the device of its sites; to that of the first, if they are on several.

    Weights on the meta device, as offloaded ones are, do not say where they will be used. Their factors stay.
    """
    here = {path: device for path, weight in weights.items() if (device := weight.like.device).type != "meta"}
    if len(found := set(here.values())) <= 1:
        return {name: value.to(next(iter(found), value.device)) for name, value in params.items()}
    devices: dict[str, torch.device] = {}
    for path, device in here.items():
        for site in adapter.weights[path]:
            for part in adapter.address(site).parts.values():
                devices.setdefault(part.name, device)
    return {name: value.to(devices.get(name, value.device)) for name, value in params.items()}
