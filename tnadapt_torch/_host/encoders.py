"""Keep torch's fused encoder away from adapted layers: in eval mode it reads their weights past their modules."""

from collections.abc import Collection
from typing import Any

from torch import nn

from tnadapt_torch._host.fronts import Front, drop_front, put_front

__all__: list[str] = []


class _Stored:
    """An attribute that answers the same whatever is stored; what is stored stays in the module's __dict__."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, module: nn.Module | None, owner: type) -> Any:
        return self.answer

    def __set__(self, module: nn.Module, value: Any) -> None:
        vars(module)[self.name] = value


class Unfused(Front):
    """The front of an encoder that calls its layers one by one: each question before it fuses is answered with no."""

    activation_relu_or_gelu = _Stored(0)
    use_nested_tensor = _Stored(False)


def slow_down(host: nn.Module, adapted: Collection[nn.Module]) -> None:
    """Let each encoder of a host that holds one of these modules call its layers one by one."""
    wanted = {id(module) for module in adapted}
    for encoder in _encoders(host):
        if any(id(module) in wanted for module in encoder.modules()):
            put_front(encoder, Unfused)


def speed_up(host: nn.Module, adapted: Collection[nn.Module]) -> None:
    """Let each encoder of a host that holds none of these modules fuse its layers again."""
    left = {id(module) for module in adapted}
    for encoder in _encoders(host):
        if isinstance(encoder, Unfused) and not any(id(module) in left for module in encoder.modules()):
            drop_front(encoder, Unfused)


def _encoders(host: nn.Module) -> list[nn.Module]:
    return [
        module for module in host.modules() if isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer)
    ]
