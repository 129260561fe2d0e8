"""The modules of a host that can be adapted: all but those of its adapters."""

from torch import nn

from tnadapt_torch._host import modules_of
from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []


def host_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return all modules of a model by path, except its adapters and the modules inside them."""
    inside = {id(module) for state in model.modules() if isinstance(state, AdapterState) for module in state.modules()}
    return modules_of(model, without=inside)
