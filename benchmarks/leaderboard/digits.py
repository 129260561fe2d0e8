"""Digits turned by 90 degrees: a residual MLP that was trained on upright ones learns to read them."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

__all__ = ["load"]

WIDTH, BLOCKS, BATCH, STEPS = 128, 4, 64, 80
PRETRAINING = 400  # steps, at rate 2e-3


class Host(nn.Module):
    """Four residual blocks of two weights of 128 x 128 between a first and a last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(WIDTH, WIDTH), "down": nn.Linear(WIDTH, WIDTH)}) for _ in range(BLOCKS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (image, digit), of images (image, 64)."""
        x = self.first(x)
        for layer in self.layers:
            x = x + layer["down"](torch.relu(layer["up"](x)))  # type: ignore[index,operator]
        logits: Tensor = self.last(x)
        return logits


@dataclass(frozen=True)
class Digits:
    """The images of each split, turned and upright, and their digits."""

    images: dict[str, Tensor]
    upright: dict[str, Tensor]
    labels: dict[str, Tensor]
    steps: int
    targets: Collection[str] = ("up", "down")

    def host(self, seed: int) -> nn.Module:
        """Return the network trained on upright digits; it is the same for every seed."""
        model = Host()
        model.load_state_dict(_pretrained())
        return model

    def heads(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return no groups: the last layer stays as it is."""
        return []

    def loss(self, model: nn.Module, step: int, seed: int) -> Tensor:
        """Return the loss of the batch of a step."""
        random = torch.Generator().manual_seed(1_000_000 * seed + step)
        chosen = torch.randint(len(self.labels["train"]), (BATCH,), generator=random)
        return nn.functional.cross_entropy(model(self.images["train"][chosen]), self.labels["train"][chosen])

    def validate(self, model: nn.Module) -> tuple[float, float]:
        """Return the accuracy and the loss on the validation split."""
        return self._score(model, self.images, "validation")

    def test(self, model: nn.Module) -> tuple[float, int]:
        """Return the accuracy on the test split, and its size."""
        return self._score(model, self.images, "test")[0], len(self.labels["test"])

    def forgetting(self, model: nn.Module) -> float | None:
        """Return the loss on upright digits."""
        return self._score(model, self.upright, "validation")[1]

    @torch.no_grad()
    def _score(self, model: nn.Module, images: dict[str, Tensor], split: str) -> tuple[float, float]:
        logits, labels = model(images[split]), self.labels[split]
        loss = nn.functional.cross_entropy(logits, labels).item()
        return (logits.argmax(1) == labels).double().mean().item(), loss


def load(quick: bool, device: str) -> Digits:
    """Return the task; a quick one has 10 steps."""
    _pretrained()  # once, before the processes of the runs part
    images, labels = (one.to(device) for one in _data())
    places = {"train": slice(0, 1100), "validation": slice(1100, 1450), "test": slice(1450, None)}
    turned = torch.rot90(images.reshape(-1, 8, 8), 1, (1, 2)).reshape(-1, 64)
    return Digits(
        {name: turned[place] for name, place in places.items()},
        {name: images[place] for name, place in places.items()},
        {name: labels[place] for name, place in places.items()},
        10 if quick else STEPS,
    )


@lru_cache(1)
def _data() -> tuple[Tensor, Tensor]:
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.data, dtype=torch.float32)[order] / 8 - 1
    return images, torch.tensor(found.target)[order]


@lru_cache(1)
def _pretrained() -> dict[str, Tensor]:
    images, labels = _data()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Host()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for _ in range(PRETRAINING):
            chosen = torch.randint(1100, (BATCH,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[:1100][chosen]), labels[:1100][chosen]).backward()
            optimizer.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
