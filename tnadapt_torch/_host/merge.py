"""Merge updates into weights: all of them or none, each rounded once; undo a merge bit for bit."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tnadapt import SiteError
from tnadapt.binding import watched
from tnadapt_torch._host.weight import Weight
from tnadapt_torch._sharded import is_partitioned, laid_like, reshard, whole

__all__: list[str] = []


@dataclass
class Merged:
    """The weights before a merge, and the position of this merge among the merges on the host.

    A weight's parameter is looked up when it is needed, since loads and casts may replace it. `buried_by` is the name
    of an adapter that was merged later and then detached. Its update stays in the weights, so this merge can no longer
    be undone.
    """

    weights: dict[str, Weight]
    originals: dict[str, Tensor]
    number: int
    buried_by: str = ""

    def is_over(self, other: "Merged") -> bool:
        """Return whether this merge came later than the other and changed one of its weights."""
        ours, theirs = (
            {(id(weight.module), weight.name) for weight in merged.weights.values()} for merged in (self, other)
        )
        return self.number > other.number and bool(ours & theirs)

    @staticmethod
    def write(
        host: nn.Module, weights: Mapping[str, Weight], deltas: Mapping[str, Callable[[], Tensor]], number: int
    ) -> "Merged":
        """Add each delta to its weight. Every sum is checked before the first one is written.

        Raises:
            SiteError: several modules share a weight, a weight is not a plain floating-point matrix, or a sum is not
                finite. No weight is changed.
        """
        reshard([weight.module for weight in weights.values()])
        check_weights(host, weights)
        with torch.no_grad():
            with watched(weights.items(), "check the merge") as checked:
                for path, weight in checked:
                    _sum(path, weight.parameter, deltas[path])
            merged = Merged(dict(weights), {}, number)
            try:
                with watched(weights.items(), "merge") as written:
                    for path, weight in written:
                        parameter = weight.parameter
                        total = _sum(path, parameter, deltas[path])
                        merged.originals[path] = parameter.detach().clone()
                        parameter.copy_(total)
            except BaseException:
                merged.restore()
                raise
        return merged

    def restore(self) -> None:
        """Restore the weights from before the merge: all of them or, with a SiteError, none."""
        for path in self.originals:
            if storage := self.weights[path].storage:
                raise SiteError(
                    f"{path}: expected the plain floating-point matrix that was merged into, got {storage}.\n"
                    "A weight that is quantized after a merge keeps the update. Detach the adapter, or load the model "
                    "again."
                )
        reshard([weight.module for weight in self.weights.values()])
        parameters = {path: self.weights[path].parameter for path in self.originals}
        for path, parameter in parameters.items():
            if parameter.is_meta:
                raise SiteError(
                    f"{path}: expected a weight with values, got one on the meta device, as offloaded weights are.\n"
                    "Bring the model back first, with accelerate.hooks.remove_hook_from_submodules(model)."
                )
        with torch.no_grad():
            for path, original in self.originals.items():
                parameters[path].copy_(laid_like(original, parameters[path]))


def loss_of(
    host: nn.Module, weights: Mapping[str, Weight], deltas: Mapping[str, Callable[[], Tensor]]
) -> dict[str, float]:
    """Return for each weight the part of its update that a merge would round away, relative to the update.

    Raises:
        SiteError: as `Merged.write` raises it.
    """
    reshard([weight.module for weight in weights.values()])
    check_weights(host, weights)
    with torch.no_grad(), watched(weights.items(), "compare") as compared:
        return {path: _loss(path, weight.parameter, deltas[path]) for path, weight in compared}


def _loss(path: str, parameter: Tensor, delta: Callable[[], Tensor]) -> float:
    update = delta()
    rounded = _sum(path, parameter, lambda: update).to(update.dtype)
    update = laid_like(update, parameter)
    kept = rounded - parameter.to(update.dtype)  # exact, or nearly so, where it is small beside the weight
    size, lost = (float(whole(part.square().sum())) for part in (update, kept - update))
    return math.sqrt(lost / size) if size else 0.0


def _sum(path: str, parameter: Tensor, delta: Callable[[], Tensor]) -> Tensor:
    update = delta()
    total = (parameter.to(update.dtype) + laid_like(update, parameter)).to(parameter.dtype)
    if whole((~torch.isfinite(total)).sum()):
        raise SiteError(
            f"{path}: expected a finite sum of weight and update, got NaN or infinity in {parameter.dtype}.\n"
            "Nothing was merged."
        )
    return total


def check_weights(host: nn.Module, weights: Mapping[str, Weight]) -> None:
    """Raise SiteError if modules share a weight, or a weight is not a stored, plain floating-point matrix."""
    owners: dict[int, list[str]] = {}
    for name, parameter in host.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for path, weight in weights.items():
        if storage := weight.storage:
            raise SiteError(
                f"{path}: expected a plain floating-point matrix to merge into, got {storage}.\n"
                "The update would be lost to the rounding of a quantized weight. Save the adapter, load its file onto "
                "the model without quantization, and merge there."
            )
        parameter = weight.parameter
        if len(names := owners.get(id(parameter), [])) > 1:
            raise SiteError(
                f"{path}: expected a weight that no other module shares, got one shared by {', '.join(names)}.\n"
                "A merge would change them all."
            )
        if parameter.is_meta:
            raise SiteError(
                f"{path}: expected a weight with values, got one on the meta device, as offloaded weights are.\n"
                "Load the whole model into memory, attach or load the adapter there, and merge."
            )
        if is_partitioned(parameter):
            raise SiteError(
                f"{path}: expected a weight that this process holds, got a part of it: "
                "DeepSpeed stage 3 holds the rest.\nMerge into a model that is not partitioned."
            )
        if parameter.ndim == 1:
            raise SiteError(
                f"{path}: expected a plain floating-point matrix to merge into, "
                f"got a {parameter.dtype} tensor of {parameter.ndim} axes."
            )
