"""Updates written into weights: all or none, rounded once, and put back bit for bit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tnadapt import SiteError

__all__: list[str] = []


@dataclass
class Merged:
    """Weights as they were before a merge, and the how manieth merge on its host it was.

    `buried_by` names an adapter that was merged later and detached, so that its update stays in the weights.
    """

    weights: dict[str, nn.Parameter]
    originals: dict[str, Tensor]
    number: int
    buried_by: str = ""

    def is_over(self, other: "Merged") -> bool:
        """Whether this merge came later and changed a weight of the other's."""
        return self.number > other.number and bool(self.weights.keys() & other.weights.keys())

    @staticmethod
    def write(
        host: nn.Module, weights: dict[str, nn.Parameter], deltas: Mapping[str, Callable[[], Tensor]], number: int
    ) -> "Merged":
        """Add each delta to its weight. Every sum is checked before the first is written.

        Raises SiteError for a weight that several modules share or that is no plain floating-point matrix, and for a
        sum that is not finite; no weight is changed then.
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
        """Put the saved weights back."""
        with torch.no_grad():
            for path, original in self.originals.items():
                self.weights[path].copy_(original)


def _merged(path: str, weight: Tensor, delta: Callable[[], Tensor]) -> Tensor:
    update = delta()
    total = (weight.to(update.dtype) + update).to(weight.dtype)
    if not torch.isfinite(total).all():
        raise SiteError(
            f"{path}: a merged weight must be finite.\n"
            f"However, weight plus update holds NaN or infinity in {weight.dtype}.\nNothing was merged."
        )
    return total


def check_weights(host: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
    """Raises SiteError for a weight that other modules of the host share, or that is no plain matrix."""
    owners: dict[int, list[str]] = {}
    for name, parameter in host.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for path, weight in weights.items():
        if len(names := owners[id(weight)]) > 1:
            raise SiteError(f"{path}: its weight is shared by {', '.join(names)}.\nA merge would change them all.")
        if not weight.is_floating_point() or weight.ndim == 1:
            raise SiteError(f"{path}: only a plain floating-point matrix can be merged into, not {weight.dtype}.")
