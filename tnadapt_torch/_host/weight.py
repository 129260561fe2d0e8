"""An adapted weight of a host: where it is, and how its axes are stored."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from tnadapt import SiteError

__all__: list[str] = []

ROLES = ("expert", "out", "in")


@dataclass(frozen=True)
class Weight:
    """A weight of a module: that of a linear layer, or a parameter that is named and whose layout is told.

    `layout` is the role of each axis as it is stored, as ("expert", "in", "out").
    """

    module: nn.Module
    name: str = "weight"
    layout: tuple[str, ...] = ("out", "in")

    @property
    def is_called(self) -> bool:
        """Whether the module maps (..., in) to (..., out) by this weight, so that an update can go into its output."""
        return self.name == "weight" and is_linear(self.module)

    @property
    def is_folded(self) -> bool:
        """Whether something is added to it each time that it is read."""
        return parametrize.is_parametrized(self.module, self.name)

    @property
    def parameter(self) -> nn.Parameter:
        """What is stored, whatever is folded into it."""
        return self.module.get_parameter(f"parametrizations.{self.name}.original" if self.is_folded else self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes as a site has them: (out, in), or (expert, out, in)."""
        if isinstance(self.module, nn.Linear):  # a quantized weight is stored in another shape
            return self.module.out_features, self.module.in_features
        sizes = self.parameter.shape
        return tuple(math.prod(s for s, r in zip(sizes, self.layout, strict=True) if r == role) for role in self.roles)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of its axes, in the order of a site's shape."""
        return tuple(role for role in ROLES if role in self.layout)

    def lay(self, update: Tensor) -> Tensor:
        """An update (out axis before in) as the weight is stored; that of one expert, too."""
        skipped = len(self.layout) - update.ndim
        roles = self.roles[skipped:]
        order = [roles.index(role) for role in self.layout if role in roles]
        return update if order == sorted(order) else update.permute(order)

    def unlay(self, stored: Tensor) -> Tensor:
        """What is stored, as a site has it."""
        return stored.permute([self.layout.index(role) for role in self.roles])


class HostWeights(Mapping[str, npt.NDArray[np.generic]]):
    """The weights of a host by path as arrays (out, in), each read when it is asked for."""

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        """Args: the weights by path."""
        self.weights = weights

    def __getitem__(self, path: str) -> npt.NDArray[np.generic]:
        weight = self.weights[path]
        stored = weight.parameter.detach()
        if not stored.is_floating_point():
            raise SiteError(f"{path}: a start is read from a floating-point weight.\nHowever, it is {stored.dtype}.")
        return weight.unlay(stored).cpu().to(torch.promote_types(stored.dtype, torch.float32)).numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def linear_weight(module: nn.Module) -> Weight:
    """The weight of a linear layer."""
    return Weight(module, layout=("in", "out") if is_conv1d(module) else ("out", "in"))


def named_weight(path: str, module: nn.Module, name: str, layout: str) -> Weight:
    """A parameter by its name. Raises SiteError for a layout that does not fit it."""
    roles = tuple(layout.split())
    if sorted(roles) not in (["in", "out"], ["expert", "in", "out"]):
        raise SiteError(
            f"{path}: a layout must be the words out and in, and expert where it holds several weights.\n"
            f"However, it is {layout!r}."
        )
    parameter = dict(module.named_parameters(recurse=False)).get(name)
    if parameter is None:
        raise SiteError(f"{path}: is no parameter of a {type(module).__name__}.")
    if parameter.ndim != len(roles):
        raise SiteError(
            f"{path}: the layout {layout!r} has {len(roles)} axes.\nHowever, it is {tuple(parameter.shape)}."
        )
    return Weight(module, name, roles)


def is_linear(module: nn.Module) -> bool:
    """Whether a module maps (..., in) to (..., out) by one weight.

    The projection inside of nn.MultiheadAttention does not count: it is never called, so a hook on it would be silent.
    """
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return False
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' Conv1D, a linear layer that stores its weight as (in, out)."""
    return hasattr(module, "nf") and any(base.__name__ == "Conv1D" for base in type(module).__mro__)
