"""An adapted weight of a model: the module that holds it and the order of its stored axes."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from tnadapt import SiteError
from tnadapt_torch._host.fronts import class_behind
from tnadapt_torch._host.quantized import device_of, is_fused, is_packed_linear, read_dense, storage_of, wide_dtype
from tnadapt_torch._host.wrappers import module_at
from tnadapt_torch._run import Update
from tnadapt_torch._sharded import whole

__all__: list[str] = []

PRODUCT_LIBRARIES = ("torch", "bitsandbytes")  # whose linear layers compute a product and nothing else
ROLES = ("expert", "out", "in")


@dataclass(frozen=True)
class Weight:
    """The weight of a linear layer, or a named parameter whose layout the user gave.

    `layout` gives the role of each stored axis, such as ("expert", "in", "out"). `path` is that of the weight's sites,
    and `owner` is the path of the module.
    """

    module: nn.Module
    name: str = "weight"
    layout: tuple[str, ...] = ("out", "in")
    path: str = ""
    owner: str = ""

    @property
    def is_module(self) -> bool:
        """Whether the weight has the path of its module, as a linear layer's does, and not that of a parameter."""
        return self.path == self.owner

    @property
    def is_called(self) -> bool:
        """Whether the module maps (..., in) to (..., out) by this weight, so that its output can take the update."""
        return self.name == "weight" and is_linear(self.module)

    @property
    def is_plain_linear(self) -> bool:
        """Whether the module is an nn.Linear and no subclass, with a weight of floating-point numbers."""
        return self.is_called and class_behind(self.module) is nn.Linear and not self.storage

    @property
    def is_product(self) -> bool:
        """Whether the output of the module is the product with its weight plus its bias, as its class computes it.

        The product cannot be had from an output whose bias is infinite, as that of a head which masks some words.
        """
        bias = getattr(self.module, "bias", None)
        if not self.is_called or not (bias is None or isinstance(bias, Tensor)):
            return False
        is_held = type(bias) in (Tensor, nn.Parameter) and not torch._C._len_torch_dispatch_stack()
        if is_held and bias is not None and not bias.is_meta and not bool(torch.isfinite(bias.detach()).all()):
            return False
        source = str(class_behind(self.module).forward.__module__)
        return source.partition(".")[0] in PRODUCT_LIBRARIES or source == "transformers.pytorch_utils"

    @property
    def is_parametrized(self) -> bool:
        """Whether something is computed each time the weight is read: a folded update, or another change."""
        return parametrize.is_parametrized(self.module, self.name)

    @property
    def is_stored(self) -> bool:
        """Whether the module holds the weight as a parameter, below nothing but folded updates."""
        if not self.is_parametrized:
            return self.module._parameters.get(self.name) is not None
        return all(isinstance(change, Folded) for change in self._changes)

    @property
    def parameter(self) -> nn.Parameter:
        """The stored parameter, without what is folded into it. Raises SiteError for a weight that is computed."""
        if not self.is_stored:
            raise SiteError(
                f"{self.path}: expected a weight that is stored as a parameter, got one that is computed: "
                "parametrized, normed or pruned.\nMake it a plain parameter first, "
                "with torch.nn.utils.parametrize.remove_parametrizations or prune.remove."
            )
        found = self._changes.original if self.is_parametrized else self.module._parameters[self.name]
        return cast("nn.Parameter", found)

    @property
    def tensor(self) -> Tensor:
        """The stored parameter, or the value of a weight that is computed, without updates that are folded into it."""
        return self.parameter if self.is_stored else self._compute()

    def _compute(self) -> Tensor:
        """Compute a weight that is not stored, without updates that are folded into it.

        What the user registered above the adapter's own update is left out too: the update is added to what is below.
        """
        if not self.is_parametrized:
            return cast("Tensor", getattr(self.module, self.name))  # as hooks of torch left it
        changes = self._changes
        names = ["original"] if changes.is_tensor else [f"original{number}" for number in range(changes.ntensors)]
        parts = [cast("Tensor", getattr(changes, name)) for name in names]
        own = [isinstance(change, Folded) and change.weight is self for change in changes]
        below = list(changes)[: own.index(True)] if True in own else changes
        for change in below:
            if not isinstance(change, Folded):
                parts = [change(*parts)]
        return parts[0]

    @property
    def _changes(self) -> parametrize.ParametrizationList:
        return cast("parametrize.ParametrizationList", self.module.get_submodule(f"parametrizations.{self.name}"))

    @property
    def is_alone(self) -> bool:
        """Whether one parametrization computes the weight from one stored tensor, and no other."""
        return self.is_parametrized and self._changes.is_tensor and len(self._changes) == 1

    @property
    def held(self) -> Tensor | None:
        """As `tensor`, but None if the module packs the weight under another name."""
        if is_packed_linear(self.module):
            return None
        if self.is_parametrized or self.is_stored:
            return self.tensor
        found = getattr(self.module, self.name, None)
        return found if isinstance(found, Tensor) else None

    @property
    def storage(self) -> str:
        """How the weight is stored, such as "Params4bit"; "" for plain floating-point numbers."""
        return storage_of(self.module, self.name, self.held)

    @property
    def like(self) -> Tensor:
        """An empty tensor on the device of the weight and of the dtype for its dense update, float32 or better."""
        held = self.held
        dtype = torch.float32 if held is None else wide_dtype(held.dtype)
        return torch.empty((), dtype=dtype, device=device_of(self.module, held))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the axis order of a site: (out, in), or (expert, out, in)."""
        is_sized = isinstance(self.module, nn.Linear) or is_packed_linear(self.module)
        if is_sized and not self._has_own_shape:
            return int(self.module.out_features), int(self.module.in_features)  # type: ignore[arg-type]
        sizes = self.tensor.shape
        return tuple(math.prod(s for s, r in zip(sizes, self.layout, strict=True) if r == role) for role in self.roles)

    @property
    def _has_own_shape(self) -> bool:
        """Whether the shape of what is stored is that of the weight: it is not packed, flattened or computed."""
        return self.is_stored and not self.storage and self.parameter.ndim == len(self.layout)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the axes, in the axis order of a site."""
        return tuple(role for role in ROLES if role in self.layout)

    def check(self, host: nn.Module, shape: tuple[int, ...]) -> None:
        """Raise SiteError unless the host still has this module in its place, with a weight of this shape."""
        found = module_at(host, self.owner)
        if found is not self.module:
            here = "none" if found is None else f"another {type(found).__name__}"
        elif self.shape != shape:
            here = f"one of shape {self.shape}"
        else:
            return
        raise SiteError(
            f"{self.path}: expected the weight of shape {shape} that the adapter was attached to, got {here}.\n"
            "The model changed after the adapter was attached. Put the module back, or detach the adapter, "
            "and attach or load it again."
        )

    def lay(self, update: Tensor) -> Tensor:
        """Permute an update, of the weight or of one expert, from the axis order of a site to the stored order."""
        skipped = len(self.layout) - update.ndim
        roles = self.roles[skipped:]
        order = [roles.index(role) for role in self.layout if role in roles]
        return update if order == sorted(order) else update.permute(order)

    def unlay(self, stored: Tensor) -> Tensor:
        """Permute a stored tensor to the axis order of a site."""
        return stored.permute([self.layout.index(role) for role in self.roles])


class Folded(nn.Module):
    """The parametrization of a weight that takes the update itself: it adds the update while the adapter is active."""

    def __init__(self, update: Update, weight: Weight, order: tuple[str, ...] = ()) -> None:
        """Store the update, its weight, and the order of the parameters of the module before it was parametrized."""
        super().__init__()
        self.order = order
        self.update = update
        self.weight = weight

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight that the module uses."""
        if not self.update.owner.active:
            return weight
        return weight + self.weight.lay(self.update.delta(weight))


class HostWeights(Mapping[str, npt.NDArray[np.generic]]):
    """The weights of a host by path, as arrays (out, in). Each is read when it is looked up.

    `originals` has the values from before a merge of those that were merged into.
    """

    def __init__(self, weights: Mapping[str, Weight], originals: Mapping[str, Tensor] | None = None) -> None:
        """Store the weights by path."""
        self.weights, self.originals = weights, originals or {}

    def __getitem__(self, path: str) -> npt.NDArray[np.generic]:
        weight = self.weights[path]
        with torch.no_grad():  # detaching would turn the parameter of a quantized layer into a plain tensor
            stored = self.originals.get(path, weight.held)
            held = None if stored is None else whole(stored)
            dense = weight.unlay(read_dense(path, weight.module, weight.name, held))
        return dense.detach().to("cpu", copy=True).numpy()  # a storage that is shared with an array could not be freed

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def linear_weight(module: nn.Module, path: str = "") -> Weight:
    """Return the weight of a linear layer at this path."""
    return Weight(module, layout=("in", "out") if is_conv1d(module) else ("out", "in"), path=path, owner=path)


def named_weight(path: str, module: nn.Module, name: str, layout: str) -> Weight:
    """Return a parameter of a module as a weight. Raise SiteError for a layout that does not fit it."""
    roles = tuple(layout.split()) if isinstance(layout, str) else ()
    if sorted(roles) not in (["in", "out"], ["expert", "in", "out"]):
        raise SiteError(
            f"{path}: expected a layout of the words out and in, and expert if it holds several weights, "
            f"got {layout!r}."
        )
    parameter = dict(module.named_parameters(recurse=False)).get(name)
    if parameter is None:
        raise SiteError(f"{path}: expected a parameter of {type(module).__name__}, got {name!r}, which is not one.")
    if parameter.ndim != len(roles):
        raise SiteError(
            f"{path}: expected a parameter with the {len(roles)} axes of the layout {layout!r}, "
            f"got one of shape {tuple(parameter.shape)}."
        )
    return Weight(module, name, roles, path, path.rpartition(".")[0])


def is_linear(module: nn.Module) -> bool:
    """Return whether a module maps (..., in) to (..., out) by one weight.

    The output projection of nn.MultiheadAttention does not count: it is never called.
    """
    if isinstance(module, NonDynamicallyQuantizableLinear) or is_fused(module):
        return False
    return isinstance(module, nn.Linear) or is_conv1d(module) or is_packed_linear(module)


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is transformers' Conv1D, a linear layer that stores its weight as (in, out)."""
    return hasattr(module, "nf") and any(base.__name__ == "Conv1D" for base in type(module).__mro__)
