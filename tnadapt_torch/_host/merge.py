"""Merge updates into weights: all of them or none, each rounded once; undo a merge bit for bit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tnadapt import SiteError

__all__: list[str] = []


@dataclass
class Merged:
    """The weights before a merge, and the position of this merge among the merges on the host.

    `buried_by` is the name of an adapter that was merged later and then detached. Its update stays in the weights, so
    this merge can no longer be undone.
    """

    weights: dict[str, nn.Parameter]
    originals: dict[str, Tensor]
    number: int
    buried_by: str = ""

    def is_over(self, other: "Merged") -> bool:
        """Return whether this merge came later than the other and changed one of its weights."""
        return self.number > other.number and bool(self.weights.keys() & other.weights.keys())

    @staticmethod
    def write(
        host: nn.Module, weights: dict[str, nn.Parameter], deltas: Mapping[str, Callable[[], Tensor]], number: int
    ) -> "Merged":
        """Add each delta to its weight. Every sum is checked before the first one is written.

        Raises:
            SiteError: several modules share a weight, a weight is not a plain floating-point matrix, or a sum is not
                finite. No weight is changed.
        """
        check_weights(host, weights)
        with torch.no_grad():
            for path, weight in weights.items():
                _merged(path, weight, deltas[path])
            originals: dict[str, Tensor] = {}
            merged = Merged(weights, originals, number)
            try:
                for path, weight in weights.items():
                    total = _merged(path, weight, deltas[path])
                    originals[path] = weight.detach().clone()
                    weight.copy_(total)
            except BaseException:
                merged.restore()
                raise
        return merged

    def restore(self) -> None:
        """Restore the weights from before the merge."""
        with torch.no_grad():
            for path, original in self.originals.items():
                self.weights[path].copy_(original)


def _merged(path: str, weight: Tensor, delta: Callable[[], Tensor]) -> Tensor:
    update = delta()
    total = (weight.to(update.dtype) + update).to(weight.dtype)
    if not torch.isfinite(total).all():
        raise SiteError(
            f"{path}: expected a finite sum of weight and update, got NaN or infinity in {weight.dtype}.\n"
            "Nothing was merged."
        )
    return total


def check_storage(storages: Mapping[str, str], *, merged: bool = False) -> None:
    """Raise SiteError for a weight that is not stored as plain floating-point numbers, before or after a merge."""
    for path, storage in storages.items():
        if storage and merged:
            raise SiteError(
                f"{path}: expected the plain floating-point matrix that was merged into, got {storage}.\n"
                "A weight that is quantized after a merge keeps the update. Detach the adapter, or reload the model."
            )
        if storage:
            raise SiteError(
                f"{path}: expected a plain floating-point matrix to merge into, got {storage}.\n"
                "The update would be lost to the rounding of a quantized weight. Save the adapter, load its file onto "
                "the model without quantization, and merge there."
            )


def check_weights(host: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
    """Raise SiteError if other modules of the host share a weight, or a weight is not a plain floating-point matrix."""
    owners: dict[int, list[str]] = {}
    for name, parameter in host.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for path, weight in weights.items():
        if len(names := owners[id(weight)]) > 1:
            raise SiteError(
                f"{path}: expected a weight that no other module shares, got one shared by {', '.join(names)}.\n"
                "A merge would change them all."
            )
        if not weight.is_floating_point() or weight.ndim == 1:
            raise SiteError(
                f"{path}: expected a plain floating-point matrix to merge into, "
                f"got a {weight.dtype} tensor of {weight.ndim} axes."
            )
