"""Letters of fonts that were not trained on, read by a ViT-S/14: the four weights of its attention are adapted."""

import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[2] / "docs" / "examples"))
from dinov2 import unpacked
from glyphs import Glyphs, make
from vision_training import HEAD_RATE, TARGETS, batch, load_reader, loss_on, over_all

__all__ = ["load"]

STEPS, SCORED = 100, {"validation": 300, "test": 500}


@dataclass(frozen=True)
class Letters:
    """The images of the splits to score; those to train on are new in each step."""

    folder: Path
    splits: dict[str, Glyphs]
    steps: int
    device: str
    targets: Collection[str] = TARGETS

    def host(self, seed: int) -> nn.Module:
        """Return the transformer with a new head, which depends on the seed."""
        return load_reader(self.folder, seed)

    def heads(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the group of the head, which every method trains at the same rate."""
        head = model.get_submodule("head").requires_grad_(requires_grad=True)
        return [{"params": list(head.parameters()), "lr": HEAD_RATE}]

    def loss(self, model: nn.Module, step: int, seed: int) -> Tensor:
        """Return the loss of the batch of a step."""
        return loss_on(model, batch(step, seed), self.device)

    def validate(self, model: nn.Module) -> tuple[float, float]:
        """Return the accuracy and the loss on the fonts of the validation split."""
        return self._score(model, "validation")

    def test(self, model: nn.Module) -> tuple[float, int]:
        """Return the accuracy on the fonts of the test split, and its size."""
        return self._score(model, "test")[0], len(self.splits["test"])

    def forgetting(self, model: nn.Module) -> float | None:
        """Return nothing: the transformer has no loss of its own."""
        return None

    def _score(self, model: nn.Module, split: str) -> tuple[float, float]:
        glyphs = self.splits[split]
        logits = over_all(model, glyphs, self.device, split)
        loss = nn.functional.cross_entropy(logits, glyphs.labels).item()
        return (logits.argmax(1) == glyphs.labels).double().mean().item(), loss


@lru_cache(2)
def load(quick: bool, device: str) -> Letters:
    """Return the task; a quick one has 4 steps and fewer images."""
    splits = {split: make(split, 40 if quick else count, 0) for split, count in SCORED.items()}
    return Letters(unpacked(), splits, 4 if quick else STEPS, device)
