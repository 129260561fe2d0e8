"""Train a vision transformer with a new head to read letters, and let it answer: one step per batch of new images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dinov2 import load_model
from glyphs import LETTERS, Glyphs, make
from torch import Tensor, nn
from tqdm import tqdm

BATCH = 16  # images of a step
AT_ONCE = 50  # images that are answered in one batch
HEAD_RATE = 5e-3  # learning rate of the head
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")  # of attention: one shape, so that all of them can share factors
MOST_STEPS = 1_000_000  # of one seed: the images of a step have a seed of their own


class Reader(nn.Module):
    """A vision transformer, its state of the class token, one linear layer to the letters."""

    def __init__(self, encoder: Any) -> None:
        """Args: the vision transformer."""
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, len(LETTERS))

    def features(self, images: Tensor) -> Tensor:
        """Return the state of the class token, (image, hidden), of images (image, colour, row, column)."""
        states: Tensor = self.encoder(images).pooler_output
        return states

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (image, letter)."""
        logits: Tensor = self.head(self.features(images))
        return logits


def load_reader(folder: Path, seed: int) -> Reader:
    """Load the pretrained transformer, and add a new head, which alone depends on the seed."""
    encoder = load_model(folder)
    torch.manual_seed(seed)
    return Reader(encoder).eval()


def batch(step: int, seed: int) -> Glyphs:
    """Return the images of a step: new ones in each step, and the same for every method."""
    return make("train", BATCH, MOST_STEPS * seed + step)


def loss_on(model: Callable[[Tensor], Tensor], glyphs: Glyphs, device: str) -> Tensor:
    """Return the cross entropy of a batch."""
    return nn.functional.cross_entropy(model(glyphs.images.to(device)), glyphs.labels.to(device))


@torch.inference_mode()
def over_all(model: Callable[[Tensor], Tensor], glyphs: Glyphs, device: str, title: str) -> Tensor:
    """Return the outputs for all images, in their order."""
    parts = tqdm(torch.split(glyphs.images, AT_ONCE), title, leave=False)
    return torch.cat([model(images.to(device)).cpu() for images in parts])


def letters(logits: Tensor) -> list[str]:
    """Return the likeliest letter of each row."""
    return [LETTERS[number] for number in logits.argmax(1).tolist()]
